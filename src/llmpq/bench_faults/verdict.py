"""What became of the requests: each exactly once, with the tokens of the undisturbed run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 1e-4
"""Where the likeliest token leads the second by less (logits), calls of other shapes may choose it: fp32 sums differ by about 1e-6."""


@dataclass(frozen=True)
class Verdict:
    """Numbers of requests; ``near_ties`` left the undisturbed run at a near-tie, which is no fault."""

    requests: int
    lost: int
    duplicated: int
    wrong: int
    near_ties: int


def judge(results: Iterable[Mapping[str, Any]], tokens: Mapping[str, Sequence[int]], margins: Mapping[str, Sequence[float]]) -> Verdict:
    """Hold ``results`` (lines with id and tokens; lines of refused requests do not count) against the undisturbed ``tokens`` by id.

    ``margins`` are the leads of these over the second likeliest. A result nobody asked for is wrong.
    """
    served = [row for row in results if "error" not in row]
    times = Counter(row["id"] for row in served)
    wrong = near = 0
    for row in {row["id"]: row for row in reversed(served)}.values():
        wanted = tokens.get(row["id"])
        if wanted is None:
            wrong += 1
        elif list(row["tokens"]) != list(wanted):
            tie = _parting_margin(row["tokens"], wanted, margins[row["id"]]) < NEAR_TIE
            near, wrong = near + tie, wrong + (not tie)
    lost = sum(identifier not in times for identifier in tokens)
    return Verdict(len(tokens), lost, sum(count - 1 for count in times.values()), wrong, near)


def _parting_margin(found: Sequence[int], wanted: Sequence[int], margins: Sequence[float]) -> float:
    """The margin at the first token that differs; infinite where one sequence merely ends before the other."""
    for one, other, margin in zip(found, wanted, margins, strict=False):
        if one != other:
            return margin
    return float("inf")
