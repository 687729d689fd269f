"""LAMBADA, PIQA and ARC-easy through lm-eval, answered by the serving kernels. Optional: `pip install -r requirements-lm-eval.txt`.

lm-eval brings prompts and scoring, not data: those come from the Hugging Face hub or its cache (HF_HUB_OFFLINE is respected), or from a
local copy of the data set's file (key ``evaluate.sources.TASK``, jsonl or parquet).
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmpq.errors import ConfigError, LlmpqError, first_line
from llmpq.evaluate.choice import Request, log_likelihoods
from llmpq.evaluate.intervals import wilson
from llmpq.model.stage import StageModel
from llmpq.progress import Progress

TASKS: Mapping[str, tuple[str, str, float | None]] = {
    "lambada_openai": ("lambada", "test", None),
    "piqa": ("piqa", "validation", 1 / 2),
    "arc_easy": ("arc", "test", 1 / 4),
}
"""Folder of lm-eval's tasks, split that is asked, and the share that guessing gets right (None: an open question)."""

_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def check_harness(names: Sequence[str], sources: Mapping[str, str]) -> None:
    """Before a model is loaded: LlmpqError where lm-eval is missing, ConfigError for a source that is no file or of another format."""
    if names and importlib.util.find_spec("lm_eval") is None:
        raise LlmpqError(
            f"key 'evaluate.tasks' lists {', '.join(names)}, which need lm-eval: pip install -r requirements-lm-eval.txt "
            "in this environment, or list the task 'continuation' alone"
        )
    for name in names:
        source = sources.get(name, "")
        if source and (not Path(source).is_file() or Path(source).suffix not in _FORMATS):
            raise ConfigError(
                f"key 'evaluate.sources.{name}': {source} is no file ending in {', '.join(_FORMATS)}; give a copy of its data"
            )


def harness_task(
    name: str, tokenizer: Tokenizer, sources: Mapping[str, str], limit: int | None = None, say: Callable[[str], None] = print
) -> Callable[[StageModel], dict[str, Any]]:
    """A task of llmpq.evaluate.quality: the lm-eval task ``name`` (one of TASKS), its first ``limit`` questions (None: all)."""
    _, split, chance = TASKS[name]

    def ask(model: StageModel) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        started = time.perf_counter()
        loaded = _load(name, split, sources.get(name, ""))
        found = simple_evaluate(
            model=_language_model(model, tokenizer, name, say), tasks=[loaded], limit=limit, bootstrap_iters=0, log_samples=True
        )
        right = [bool(sample["acc"]) for sample in next(iter(found["samples"].values()))]
        low, high = wilson(sum(right), len(right))
        return {
            "task": name,
            "accuracy": sum(right) / len(right),
            "low": low,
            "high": high,
            "questions": len(right),
            "chance": chance,
            "seconds": round(time.perf_counter() - started, 3),
        }

    return ask


def _load(name: str, split: str, source: str) -> Any:
    """The task with its data; LlmpqError that names the key where those are not to be had."""
    from lm_eval import tasks

    folder = Path(str(tasks.__file__)).parent / TASKS[name][0]
    spec: str | dict[str, Any] = name
    if source:
        files = {split: str(Path(source).resolve())}
        kind = _FORMATS[Path(source).suffix]
        changed = {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        changed |= {f"{each}_split": split if each == split else None for each in ("training", "validation", "test")}
        spec = {"group": "local", "task": [{"task": name, **changed}]}  # only within a group does lm-eval change a task it knows
    try:
        known = tasks.TaskManager(include_path=str(folder), include_defaults=False)  # all of its tasks would take a minute to list
        loaded = known.load([spec])["tasks"]
        return next(iter(loaded.values()))
    except Exception as error:  # datasets and the hub client raise dozens of kinds
        raise LlmpqError(
            f"the data of task '{name}' (key 'evaluate.tasks') are not to be had ({first_line(error)}); download them where there is "
            f"network and set evaluate.sources.{name} to the file (split {split}), or list the task 'continuation' alone"
        ) from None


def _language_model(model: StageModel, tokenizer: Tokenizer, name: str, say: Callable[[str], None]) -> Any:
    """``model`` as lm-eval sees a language model: log-likelihoods of continuations, and nothing else."""
    from lm_eval.api.model import TemplateLM

    class Served(TemplateLM):
        """The stage model behind lm-eval's interface; contexts longer than it can read lose their beginning."""

        @property
        def eot_token_id(self) -> int:
            return model.spec.eos_token_ids[0] if model.spec.eos_token_ids else 0

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).ids)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            room = model.spec.max_context + 1
            pairs = [Request(context[-max(room - len(after), 1) :], after) for _, context, after in requests]
            done = Progress(f"task {name}", len(pairs), say)

            def report(count: int) -> None:
                for _ in range(count):
                    done.step("continuations")

            return [(answer.log_likelihood, answer.greedy) for answer in log_likelihoods(model, pairs, report)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise LlmpqError("perplexity is taken by llmpq itself; key 'evaluate.tasks' lists multiple-choice tasks only")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise LlmpqError("this model answers by log-likelihood only; key 'evaluate.tasks' lists multiple-choice tasks only")

    return Served()
