"""The group ``evaluate``: which texts are read in which windows, what is compared, which questions are asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PACKAGED_TEXTS = ("wikipedia", "news", "python-docs")
BENCHMARK_TEXTS = ("wikitext2", "ptb", "c4")
TEXTS = (*PACKAGED_TEXTS, *BENCHMARK_TEXTS)

TASKS: Mapping[str, str | None] = {"continuation": "news", "lambada_openai": None, "piqa": None, "arc_easy": None}
"""Tasks, and the text that each is made of (None: it has data of its own)."""


@dataclass
class Sources:
    """Local copies of the original files of benchmark texts and of lm-eval's tasks; empty: from the hub."""

    wikitext2: str = ""
    ptb: str = ""
    c4: str = ""
    lambada_openai: str = ""
    piqa: str = ""
    arc_easy: str = ""


@dataclass
class Evaluate:
    """``windows`` null: all that the region holds; ``stride`` null: a whole window; ``questions`` null: all of a task's."""

    name: str
    texts: list[str]
    region: list[float]
    windows: int | None
    window_tokens: int
    stride: int | None = None
    compare: bool = True
    tasks: list[str] = field(default_factory=list)
    questions: int | None = None
    sources: Sources = field(default_factory=Sources)


def evaluation_texts(evaluate: Mapping[str, Any]) -> list[str]:
    """Texts that an evaluation reads: those it takes perplexity on, then those that its tasks are made of."""
    of_tasks = [text for text in map(TASKS.get, evaluate["tasks"]) if text is not None]
    return list(dict.fromkeys([*evaluate["texts"], *of_tasks]))


def used_texts(experiment: Mapping[str, Any]) -> list[str]:
    """Texts that an experiment needs, for prompts, calibration or evaluation."""
    own = [experiment["workload"]["text"], experiment["quantizer"]["calibration"]["text"]]
    return sorted({*own, *evaluation_texts(experiment["evaluate"])})
