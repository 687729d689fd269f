"""Our simulated figures beside the published ones: tokens/s where they are published, speed-ups cluster by cluster, and why they differ.

Published figures: LLM-PQ (PPoPP 2024, arXiv 2403.01136) and SplitQuant (IEEE Cluster 2025). Most of their per-cluster figures are
pictures only; what is printed as a number is here.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmpq.report.format import number, percent
from llmpq.report.tables import Cell, Column, Table
from llmpq.report.verdict import LEVEL
from llmpq.suites.members import AS_PUBLISHED, ONE_WIDTH, TUNED, Member

BATCH = "paper"
"""The workload of the published rows; rows ``-lat`` have no published figure."""

KINDS = {"tuned": TUNED, "as published": AS_PUBLISHED, "one width, as published": ONE_WIDTH}
"""Kinds of baselines. AdaBits mixes widths as LLM-PQ does and is published as a part of it, so the last leaves it out."""

GENERATIONS = ("2023", "today")
SPEEDUPS = {"LLM-PQ": (2.26, 2.88, "11 clusters"), "SplitQuant": (1.61, 2.34, "10 set-ups")}
"""Published mean and greatest speed-up over the best baseline, and over how many."""


@dataclass(frozen=True)
class Published:
    """A printed tokens/s; ``strategy`` is our name for what it was measured with."""

    cluster: str
    what: str
    strategy: str
    tokens_per_s: float


FIGURES = (
    Published("paper-3", "AdaBits", "adabits-published", 33.93),
    Published("paper-3", "LLM-PQ", "llmpq", 39.70),
    Published("paper-5", "AdaBits", "adabits-published", 7.35),
    Published("paper-5", "LLM-PQ", "llmpq", 9.97),
    Published("paper-1", "FlexGen, 16 bit", "offload", 18.3),
    Published("paper-1", "FlexGen, compressed", "offload", 63.7),
    Published("paper-9", "FlexGen, 16 bit", "offload", 3.10),
    Published("paper-9", "FlexGen, compressed", "offload", 10.2),
    Published("paper-10", "FlexGen, 16 bit", "offload", 7.37),
    Published("paper-10", "FlexGen, compressed", "offload", 15.5),
)


def of_the_paper(members: Iterable[Member]) -> dict[tuple[str, str], Member]:
    """The simulated members that stand for a published row, by cluster and generation of kernels."""
    mine = [each for each in members if each.facts.workload == BATCH and each.facts.suite == "paper" and each.how == "simulated"]
    return {(each.facts.cluster, each.facts.kernels): each for each in mine}


def published_rows(members: Iterable[Member]) -> list[dict[str, Any]]:
    """published.csv: tokens/s, printed and simulated, then speed-ups by cluster and their mean and maximum; empty without such members."""
    found = of_the_paper(members)
    if not found:
        return []
    rows: list[dict[str, Any]] = []
    for figure in FIGURES:
        ours = {f"simulated_{kernels}": _tokens(found, figure, kernels) for kernels in GENERATIONS}
        rows.append({"cluster": figure.cluster, "what": f"{figure.what}, tokens/s", "published": figure.tokens_per_s, **ours})
    clusters = dict.fromkeys(cluster for cluster, _ in found)
    for kind, strategies in KINDS.items():
        what = f"speed-up over the best baseline, {kind}"
        for cluster in clusters:
            ours = {f"simulated_{kernels}": _speedup(found, cluster, kernels, strategies) for kernels in GENERATIONS}
            rows.append({"cluster": cluster, "what": what, "published": None, **ours})
        for name, fold, place in (("mean", statistics.fmean, 0), ("maximum", max, 1)):
            ours = {f"simulated_{kernels}": _folded(found, kernels, strategies, fold) for kernels in GENERATIONS}
            rows.append({"cluster": name, "what": what, "published": SPEEDUPS["LLM-PQ"][place], **ours})
    return rows


def _tokens(found: dict[tuple[str, str], Member], figure: Published, kernels: str) -> float | None:
    member = found.get((figure.cluster, kernels))
    return member.tokens_per_s(figure.strategy) if member else None


def _speedup(found: dict[tuple[str, str], Member], cluster: str, kernels: str, strategies: tuple[str, ...]) -> float | None:
    member = found.get((cluster, kernels))
    return member.speedup(strategies) if member else None


def _folded(found: dict[tuple[str, str], Member], kernels: str, strategies: tuple[str, ...], fold: Any) -> float | None:
    ratios = _ratios(found, kernels, strategies)
    return float(fold(ratios)) if ratios else None


def _ratios(found: dict[tuple[str, str], Member], kernels: str, strategies: tuple[str, ...]) -> list[float]:
    ratios = [member.speedup(strategies) for (_, generation), member in found.items() if generation == kernels]
    return [ratio for ratio in ratios if ratio is not None]


def tokens_table(members: Iterable[Member]) -> Table:
    """Printed tokens/s beside ours; small print has the factor between them."""
    columns = [Column("cluster", numeric=False), Column("what", numeric=False), Column("published", "tokens/s, measured")]
    columns += [Column(f"kernels {kernels}", "tokens/s, simulated") for kernels in GENERATIONS]
    rows = []
    for figure, row in zip(FIGURES, published_rows(members), strict=False):
        cells = [Cell(figure.cluster, key=figure.cluster), Cell(figure.what), Cell(number(figure.tokens_per_s), key=figure.tokens_per_s)]
        for kernels in GENERATIONS:
            ours = row[f"simulated_{kernels}"]
            detail = "not simulated" if ours is None else f"{number(ours / figure.tokens_per_s)} × published"
            cells.append(Cell(number(ours), detail, -1 if ours is None else ours))
        rows.append(cells)
    return Table("Tokens/s that are printed, beside those of the simulation.", columns, rows)


def speedup_table(members: Iterable[Member]) -> Table:
    """Speed-ups by cluster, with their mean and maximum last; small print names the baseline."""
    found = of_the_paper(members)
    columns = [
        Column("cluster", numeric=False),
        *[Column(f"kernels {each}", f"over the best, {kind}") for each in GENERATIONS for kind in KINDS],
    ]
    rows = []
    for cluster in dict.fromkeys(cluster for cluster, _ in found):
        cells = [_cell(found.get((cluster, kernels)), strategies) for kernels in GENERATIONS for strategies in KINDS.values()]
        rows.append([Cell(cluster, key=cluster), *cells])
    folds: tuple[tuple[str, Any], ...] = (("mean", statistics.fmean), ("maximum", max))
    for name, fold in folds:
        cells = []
        for kernels in GENERATIONS:
            for strategies in KINDS.values():
                count = len(_ratios(found, kernels, strategies))
                ratio = _folded(found, kernels, strategies, fold)
                cells.append(Cell("–" if ratio is None else f"{number(ratio)}×", f"of {count} clusters", ratio or -1))
        rows.append([Cell(name), *cells])
    return Table("Speed-up of llmpq's plan over the fastest baseline that keeps the quality asked for (simulated).", columns, rows)


def _cell(member: Member | None, strategies: tuple[str, ...]) -> Cell:
    best = member.best(strategies) if member else None
    ratio = member.speedup(strategies) if member else None
    if best is None or ratio is None:
        return Cell("–", "no baseline fits" if member else "", -1)
    return Cell(f"{number(ratio)}×", best.strategy, ratio)


def findings(members: Iterable[Member]) -> list[str]:
    """What the comparison says, from these very numbers: means, where nothing is gained, and what the gain rests on."""
    found = of_the_paper(members)
    sentences = []
    for kernels in GENERATIONS:
        ratios = {kind: _ratios(found, kernels, strategies) for kind, strategies in KINDS.items()}
        if all(ratios.values()):
            level = sum(ratio <= 1 + LEVEL for ratio in ratios["tuned"])
            words = [f"{_words(each)} over the best {kind} ({len(each)} clusters)" for kind, each in ratios.items()]
            sentences.append(
                f"Kernels {kernels}, baselines that keep the quality asked for: {'; '.join(words)}. "
                f"Over the best tuned one nothing is gained, to {percent(100 * LEVEL)}, on {level} of {len(ratios['tuned'])} clusters."
            )
    unproved = [member.name for member in found.values() if member.focus["planning"]["status"] != "optimal"]
    if unproved:
        sentences.append(f"Not proved within the time limit, so that a better plan may exist: {', '.join(unproved)}.")
    return sentences


def _words(ratios: list[float]) -> str:
    return f"{number(statistics.fmean(ratios))}× on average and {number(max(ratios))}× at most"
