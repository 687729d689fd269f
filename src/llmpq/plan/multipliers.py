"""The best multipliers for a window of paces: the share of the round trip in the round, and under a budget the weight of Σ omega.

The bound is concave and piecewise linear in both, and every path found is a slope, so cutting planes (``ascent``) find the best in a few
evaluations from those of the window around. A weight far too small is first multiplied up until the budget is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from llmpq.plan.ascent import ascend
from llmpq.plan.candidate import Floats
from llmpq.plan.pace import Node, Pace, Prices, Route

# A weight whose path exceeds the budget is tried so many times heavier, up to this (ms).
HEAVIER, HEAVIEST = 6.0, 1e15


@dataclass(frozen=True)
class Tried:
    """A node with its multipliers, its bound (inf: no plan), the path of that bound, and the costs they come from."""

    bound: float
    route: Route | None
    node: Node
    prices: Prices
    to_go: Floats


class Multipliers:
    """Tries multipliers for one node; ``offer`` takes the plans met that keep the budget, ``cutoff`` is what a bound must reach.

    ``late`` tells when no more than the one evaluation that a bound needs should be made.
    """

    def __init__(self, pace: Pace, node: Node, offer: Callable[[Route], None], cutoff: float, late: Callable[[], bool]) -> None:
        self.pace, self.node, self.offer, self.cutoff, self.no_time = pace, node, offer, cutoff, late
        self.tried: dict[tuple[float, float], Tried] = {}

    @property
    def best(self) -> Tried:
        return max(self.tried.values(), key=lambda item: item.bound)

    def at(self, share: float, weight: float) -> Tried:
        if (share, weight) not in self.tried:
            trial = replace(self.node, trip_share=share, weight=weight)
            prices = self.pace.prices(trial)
            to_go = self.pace.to_go(prices)
            bound, route = self.pace.bound_from(trial, prices, to_go)
            self.tried[share, weight] = Tried(bound, route, trial, prices, to_go)
            if route is not None and self.over(route) <= 0:
                self.offer(route)
        return self.tried[share, weight]

    def over(self, route: Route) -> float:
        """By how much a path exceeds the budget: the slope of the bound along its weight."""
        return 0.0 if self.pace.allowed is None else route.omega - self.pace.allowed

    def late(self, route: Route) -> float:
        """By how much its round trip exceeds the window's busiest round: the slope along the share of the round trip."""
        return self.pace.decoding * self.pace.rounds * (route.trip - self.node.window.busy_from)

    def open(self, tried: Tried) -> bool:
        return tried.route is not None and tried.bound < self.cutoff

    def climb(self, steps: int, first: bool) -> None:
        """Try better multipliers than the node's own, in at most about ``steps`` evaluations."""
        start = self.at(self.node.trip_share, self.node.weight)
        if self.pace.allowed is not None:
            start = self.heavier(start, first)
        if not self.open(start) or start.route is None or self.no_time():
            return
        late, share, weight = self.late(start.route), start.node.trip_share, start.node.weight
        if self.pace.allowed is None and ((late >= 0 and share == 1.0) or (late <= 0 and share == 0.0)):
            return
        scale = max(weight, 1.0)
        budgeted = float(self.pace.allowed is not None)

        def evaluate(point: Floats) -> tuple[float, Floats]:
            if self.no_time():
                return np.inf, np.zeros(2)  # ends the ascent
            found = self.at(float(np.clip(point[0], 0.0, 1.0)), float(point[1]) * scale if budgeted else weight)
            if found.route is None:
                return found.bound, np.zeros(2)
            return found.bound, np.array([self.late(found.route), budgeted * scale * self.over(found.route)])

        at, radius, highest = np.array([share, weight / scale]), np.array([1.0, budgeted]), np.array([1.0, np.inf])
        ascend(evaluate, at, radius, np.zeros(2), highest, steps, self.cutoff)

    def heavier(self, tried: Tried, first: bool) -> Tried:
        """The best of the weights from ``tried`` up, as long as the bound grows; at first up to one whose path keeps the budget."""
        best = tried
        while (
            self.open(tried)
            and not self.no_time()
            and tried.route is not None
            and self.over(tried.route) > 0
            and tried.node.weight < HEAVIEST
        ):
            tried = self.at(tried.node.trip_share, max(tried.node.weight, 1.0) * HEAVIER)
            if tried.bound < best.bound and not first:
                break
            best = max(best, tried, key=lambda item: item.bound)
        return best
