"""Nodes of the search over paces: a window for one choice of micro-batches, at one of four levels, and how windows are cut."""

import math
from dataclasses import dataclass, replace

from llmpq.plan.candidate import Candidate
from llmpq.plan.cases import Team
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.pace import Case, Prices, Window

# Any devices; a known first and last class; all devices known; their order known.
ANY, ENDS, TEAM, ORDER = range(4)
# A window is halved while it leaves more of the objective open than this share of the cutoff.
WIDTHS = {ANY: 0.03, ENDS: 0.01, TEAM: 0.004, ORDER: 0.02}
NARROW = 0.0004
# Seconds for the first try of an order's integer program.
FIRST_TRY_S = 2.0
# So many halvings or levels later the prices are worked on anew.
OLD = 3


@dataclass(frozen=True)
class Node:
    level: int
    batches: MicroBatches
    case: Case
    window: Window
    prices: Prices
    trip_share: float = 0.0
    ends: tuple[int, int] = (-1, -1)
    team: Team | None = None
    candidate: Candidate | None = None
    end: int = 0
    age: int = 0


def narrowed(node: Node, bound: float, limit: float) -> Window:
    """The window without paces so slow that they lift the bound to ``limit``; ``bound`` with the round priced by its pace alone."""
    if not math.isfinite(limit):
        return node.window
    window, case = node.case.tightened(node.window), node.case
    weight = case.decoding * (case.rounds + case.drain_share)
    prefill_to = min(window.prefill_to, window.prefill_from + limit - bound)
    round_to = min(window.round_to, window.round_from + (limit - bound) / weight) if weight else window.round_to
    return replace(window, prefill_to=max(prefill_to, window.prefill_from), round_to=max(round_to, window.round_from))


def halves(window: Window, by_prefill: bool) -> tuple[Window, Window]:
    if by_prefill:
        middle = (window.prefill_from + window.prefill_to) / 2
        return replace(window, prefill_to=middle), replace(window, prefill_from=middle)
    middle = (window.round_from + window.round_to) / 2
    return replace(window, round_to=middle), replace(window, round_from=middle)


def key_of(node: Node) -> tuple[tuple[int, ...], MicroBatches]:
    assert node.candidate is not None
    return node.candidate.order, node.batches


def inside(window: Window, other: Window) -> bool:
    return (
        other.prefill_from <= window.prefill_from
        and window.prefill_to <= other.prefill_to
        and other.round_from <= window.round_from
        and window.round_to <= other.round_to
    )
