"""The questions that an evaluation asks beside perplexity, by the names that ``evaluate.tasks`` lists."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmpq.errors import ConfigError
from llmpq.evaluate import continuation, harness
from llmpq.evaluate.choice import multiple_choice
from llmpq.evaluate.quality import Task
from llmpq.model.stage import StageModel
from llmpq.progress import Progress

NAMES = (continuation.NAME, *harness.TASKS)


def make_tasks(
    names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    news: str | Path | None = None,
    region: Sequence[float] = (0.0, 1.0),
    questions: int | None = None,
    sources: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> list[Task]:
    """One task per name of NAMES. ``news``, ``region``: text of the task ``continuation``; ``questions``: how many of each (None: all of
    lm-eval's, 100 of ours); ``sources``: local data of lm-eval's tasks. What is missing is told before a model is loaded.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ConfigError(f"unknown task '{unknown[0]}'; known: {', '.join(NAMES)}")
    sources = sources or {}
    harness.check_harness([name for name in names if name in harness.TASKS], sources)
    tasks = []
    for name in names:
        if name in harness.TASKS:
            tasks.append(harness.harness_task(name, tokenizer, sources, questions, say))
        elif news is None:
            raise ConfigError(f"the task '{name}' needs the text '{continuation.TEXT}'; prepare it and give its path")
        else:
            tasks.append(_continuation(tokenizer, news, region, questions or continuation.QUESTIONS, say))
    return tasks


def _continuation(tokenizer: Tokenizer, news: str | Path, region: Sequence[float], count: int, say: Callable[[str], None]) -> Task:
    questions = continuation.continuation_questions(news, region, count)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(model: StageModel) -> dict[str, Any]:
        done = Progress(f"task {continuation.NAME}", count * continuation.CHOICES, say)

        def report(finished: int) -> None:
            for _ in range(finished):
                done.step("choices")

        return multiple_choice(model, encode, questions, continuation.NAME, report)

    return ask
