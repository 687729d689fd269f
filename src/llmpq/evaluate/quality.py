"""The ``quality`` artifact of one assignment: perplexity, distance from 16 bit and answered questions, all through the serving kernels."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmpq import artifacts
from llmpq.evaluate.intervals import CONFIDENCE
from llmpq.evaluate.perplexity import EvaluationError, perplexity
from llmpq.evaluate.reference import OPTION, Reference
from llmpq.model.stage import StageModel
from llmpq.progress import Progress
from llmpq.quant.layer_index import Folders

Task = Callable[[StageModel], dict[str, Any]]
"""Asks a model questions and returns an entry of ``tasks`` in a ``quality`` artifact."""


def evaluate_quality(
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    options: Sequence[str],
    texts: Mapping[str, torch.Tensor],
    *,
    ends: tuple[str, str] = (OPTION, OPTION),
    stride: int | None = None,
    reference: Reference | None = None,
    tasks: Sequence[Task] = (),
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Body of a ``quality`` artifact for one assignment of weight options.

    ``options``: one per decoder layer; ``ends``: of embedding and head; ``texts``: windows [w, t] of token ids by name, of which the last
    ``stride`` tokens are scored (None: all but the first); ``reference``: the 16-bit model on the same windows. The model is loaded
    through the serving path, all layers in this process. The result depends on the arguments only: plans with equal options share it.
    """
    started = time.perf_counter()
    states = {name: reference.states(name, windows, stride) for name, windows in texts.items()} if reference else {}
    model = StageModel.load(checkpoint_dir, quantised_dir, first_layer=0, options=list(options), embedding=ends[0], head=ends[1])
    judge = StageModel.load(checkpoint_dir, None, first_layer=0, options=[], head=OPTION) if reference and ends[1] != OPTION else model
    if reference is not None:
        reference.check_head(judge.digest_lines[-1])
    windows_done, rows = Progress("perplexity", sum(len(windows) for windows in texts.values()), progress), []
    for name, windows in texts.items():

        def report(count: int, of: int, name: str = name) -> None:
            windows_done.step(f"windows ({count} of {of} of {name})")

        rows.append({"text": name, **perplexity(model, windows, report, stride=stride, reference=states.get(name), predict=judge.predict)})
    longest = max(int(windows.shape[1]) for windows in texts.values())
    body: dict[str, Any] = {
        "weights_sha256": model.weights_digest,
        "options": list(options),
        "embedding_option": ends[0],
        "head_option": ends[1],
        "window_tokens": longest,
        "stride": stride or longest,
        "confidence": CONFIDENCE,
        "texts": rows,
        "tasks": [task(model) for task in tasks],
    }
    if reference is not None:
        body["reference"] = {"option": OPTION, "weights_sha256": reference.weights_sha256, "seconds": reference.seconds}
    return body | {"seconds": round(time.perf_counter() - started, 3)}


def write_quality(out: str | Path, plan: Mapping[str, Any], body: Mapping[str, Any], inputs: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Write ``quality.json`` of one plan; refuses a ``body`` that was computed for another assignment."""
    options = plan_options(plan)
    if list(body["options"]) != options:
        raise EvaluationError(f"{out}: the evaluation is of other options than those of plan {plan['strategy']}; evaluate that plan")
    ends, found = plan_ends(plan), (body["embedding_option"], body["head_option"])
    if found != ends:
        kept = f"plan {plan['strategy']} keeps embedding and head at {' and '.join(ends)}"
        raise EvaluationError(f"{out}: {kept}, the evaluation is of {' and '.join(found)}; evaluate that plan")
    return artifacts.write(out, "quality", {"strategy": plan["strategy"], **body}, source="measured", inputs=inputs)


def plan_options(plan: Mapping[str, Any]) -> list[str]:
    """The option of every decoder layer, in layer order."""
    stages = sorted(plan["stages"], key=lambda stage: stage["first_layer"])
    return [str(option) for stage in stages for option in stage["options"]]


def plan_ends(plan: Mapping[str, Any]) -> tuple[str, str]:
    """The options of embedding and head."""
    stages = sorted(plan["stages"], key=lambda stage: stage["first_layer"])
    return str(stages[0]["embedding_option"]), str(stages[-1]["head_option"])
