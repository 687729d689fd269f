"""What is timed: the paper's clusters from data sheets, clusters of any size, both kinds of objective, and how long each may take."""

import re
from pathlib import Path
from typing import Any

from llmpq.bench.large import large_problem
from llmpq.cost.paper import paper_problem

ROWS = (*(f"paper-{number}" for number in range(3, 12)), "paper-1-lat", "paper-4-lat", "paper-6-lat")
# Layers × devices of two types: how planning time grows; and the two sizes with targets of their own.
CURVE = tuple(f"{layers}x{devices}-2" for layers in (24, 48, 96) for devices in (2, 4, 8, 16))
LARGE = ("96x16-4", "126x32-3")
NAMED_ROWS = {"paper": ROWS, "curve": CURVE, "large": LARGE}
SIZE = re.compile(r"(\d+)x(\d+)-([1-4])")
# Milliseconds one would pay to avoid the damage of uniform 4 bit; batches of these rows take 10 to 400 s.
THETA_MS = 10_000.0
MODES: dict[str, dict[str, float]] = {
    "theta": {"theta_ms": THETA_MS},
    "budget 0.1": {"quality_budget": 0.1},
    "budget 0.5": {"quality_budget": 0.5},
    "budget 1": {"quality_budget": 1.0},
}
# Targets of the planner: seconds and relative gaps.
PROVED_GAP = 1e-3
HIGHS_S, HIGHS_MEDIAN_S = 30.0, 8.0
GLPK_S = 90.0
# A limit is looked at between steps: so much may a run exceed it and still count as stopped by it.
GRACE_S = 2.0
GLPK_HARD = ("paper-7", "paper-8")
GLPK_HARD_S, GLPK_HARD_GAP = 120.0, 0.02
LARGE_TARGETS = {"96x16-4": (300.0, 0.02), "126x32-3": (600.0, 0.05)}


def rows_of(names: str | None) -> list[str]:
    """Comma-separated rows; paper, curve and large stand for several."""
    return [row for name in (names or "paper").split(",") for row in NAMED_ROWS.get(name, (name,))]


def time_limit_s(row: str, solver: str) -> float:
    """The limit that the targets give a plan of ``row`` with ``solver``."""
    if row in LARGE_TARGETS:
        return LARGE_TARGETS[row][0]
    if solver == "glpk":
        return GLPK_HARD_S if row in GLPK_HARD else GLPK_S
    return HIGHS_S


def problem_of(config: Path, row: str, generation: str, mode: str) -> dict[str, Any]:
    """A row of config/paper.yaml, or LxN-T: L layers on N devices of T types (``large``)."""
    size = SIZE.fullmatch(row)
    if size:
        layers, devices, kinds = map(int, size.groups())
        return large_problem(config, layers, devices, kinds, generation, MODES[mode])
    return paper_problem(config, row, generation, MODES[mode])[0]
