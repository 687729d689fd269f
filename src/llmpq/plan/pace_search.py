"""Branch and bound over windows of paces: all device orders at once, one choice of micro-batches at a time.

A node is a window for one choice of micro-batches; its bound is a shortest path for all orders (``pace``), and the path is a plan as well.
The node of least bound is next: its window is cut where the path's own pace lies, so that the path is excluded on one side and priced
exactly on the other. Paces are those of listed rows, hence finitely many, and a window ends as a single point; what the multipliers leave
open there is decided by plans with several sums (``labels``), and, where there are too many, by integer programs.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from llmpq.plan.bound import Relaxation
from llmpq.plan.candidate import build
from llmpq.plan.labels import Labels, TooManyError
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.multipliers import Multipliers
from llmpq.plan.pace import Node, Pace, Route, Window
from llmpq.plan.pace_prune import pruned
from llmpq.plan.parts import PartMaker
from llmpq.plan.problem import Problem
from llmpq.plan.routes import Routes

# Evaluations to find better multipliers: of the first window of a choice of micro-batches, and of later ones.
FIRST_STEPS, STEPS = 16, 4
# A path's pace this close (relative to the cutoff) to the window's lower end is where the window is cut; farther ones are halved.
SMALL = 1e-3
# Sums of doubles in different orders: a path's own bound may miss its objective by so much (relative).
_SLACK = 1e-12


class PaceSearch:
    """``offer`` takes plans found on the way, ``cutoff`` tells what a bound must reach, ``over`` when the time is."""

    def __init__(
        self,
        problem: Problem,
        routes: Routes,
        maker: PartMaker,
        offer: Callable[[MicroBatches, Route], None],
        cutoff: Callable[[], float],
        over: Callable[[], bool],
    ) -> None:
        self.problem, self.offer, self.cutoff, self.over = problem, offer, cutoff, over
        self.pace = Pace(problem, routes, maker)
        self.labels = Labels(self.pace)
        self.heap: list[tuple[float, int, Node, Route | None]] = []
        self.number = itertools.count()
        self.proven = math.inf
        self.weight = problem.theta_ms
        self.evaluations = 0
        self.left: set[MicroBatches] = set()
        self.solved: dict[MicroBatches, float] = {}

    def run(self, solve: Callable[[MicroBatches], float]) -> float:
        """Search; returns the proven bound of all that is left open. ``solve`` bounds a whole choice of micro-batches by programs
        (-inf: it did not)."""
        self.solve = solve
        for node in self.first_nodes():
            if not self.possible(node):
                continue
            if self.over():  # nothing is proved of the choices that were not looked at
                self.proven = 0.0
                self.left.add(node.batches)
            else:
                self.push(node, 0.0, FIRST_STEPS)
        while self.heap and self.heap[0][0] < min(self.cutoff(), self.proven) and not self.over():
            bound, _, node, route = heapq.heappop(self.heap)
            assert route is not None
            for child in self.cut(node, route, bound):
                self.push(child, bound, STEPS)
        self.left |= {node.batches for bound, _, node, _ in self.heap if bound < self.cutoff()}
        return min(self.proven, self.heap[0][0] if self.heap else math.inf)

    def glance(self) -> None:
        """Offer the plans of one or two paths for every choice of micro-batches, and prove nothing."""
        for node in self.first_nodes():
            snapped = self.pace.snapped(node)
            if snapped is not None:
                self.multipliers(snapped).climb(1, first=False)

    def first_nodes(self) -> Iterator[Node]:
        """All paces of every choice of micro-batches."""
        parts = self.pace.maker.all()
        self.weight = self.first_weight()
        for batches in self.problem.micro_batches:
            yield Node(batches, parts[batches], Window(), float(len(batches.decode) == 1), self.weight)

    def possible(self, node: Node) -> bool:
        """Whether there is a plan at all that fits in memory and keeps the budget (asked of a budget, and where time is over)."""
        if self.pace.allowed is None and not self.over():
            return True
        least = self.pace.least_omega(node)
        return math.isfinite(least) and (self.pace.allowed is None or least <= self.pace.allowed)

    def first_weight(self) -> float:
        """theta, or for a budget the price of damage in the linear relaxation of one order of all devices."""
        problem = self.problem
        if problem.quality_budget is None:
            return problem.theta_ms
        order = tuple(range(min(len(problem.devices), problem.layers)))
        if any(problem.excludes(a, b) for a, b in itertools.combinations(order, 2)):
            order = order[:1]
        candidate = build(problem, order, problem.micro_batches[len(problem.micro_batches) // 2])
        found = Relaxation(problem).solve(candidate) if (candidate.capacity >= 0).all() else None
        return 1.0 if found is None else max(found.budget, 1.0)

    def push(self, node: Node, parent: float, steps: int) -> None:
        """Bound a node; drop it if it cannot win, else leave in it what can."""
        self.evaluations += 1
        snapped = self.pace.snapped(node)
        if snapped is None:
            return
        bound, node, route = self.priced(snapped, steps)
        bound = max(bound, parent)
        if route is None or bound >= self.cutoff():
            return
        heapq.heappush(self.heap, (bound, next(self.number), node, route))

    def priced(self, node: Node, steps: int) -> tuple[float, Node, Route | None]:
        """The best bound found over multipliers, the node with those and without rows that cannot win, and its path."""
        tries = self.multipliers(node)
        tries.climb(steps, first=steps == FIRST_STEPS)
        best, limit = tries.best, self.cutoff()
        if best.route is None or best.bound >= limit or not math.isfinite(limit):
            return best.bound, best.node, best.route
        left = pruned(self.pace, best.node, best.prices, best.to_go, limit)
        for tried in tries.tried.values():
            left = self.narrowed(left, tried.node, tried.bound)
        return best.bound, left, best.route

    def multipliers(self, node: Node) -> Multipliers:
        return Multipliers(self.pace, node, lambda route: self.offer(node.batches, route), self.cutoff(), self.over)

    def narrowed(self, node: Node, priced: Node, bound: float) -> Node:
        """The window without paces so slow that they lift ``bound``, that of ``priced``, to the cutoff."""
        room, own, window = max(self.cutoff() - bound, 0.0), priced.window, node.window
        weight = self.pace.busy_weight(priced)
        prefill_to = min(window.prefill_to, own.prefill_from + room)
        busy_to = min(window.busy_to, own.busy_from + room / weight) if weight > 0 else window.busy_to
        return replace(node, window=replace(window, prefill_to=prefill_to, busy_to=busy_to))

    def cut(self, node: Node, route: Route, bound: float) -> list[Node]:
        """Two windows that make up the node's own, or none where it is settled otherwise; ``bound`` is the node's.

        The path's own paces show what its bound leaves out: the larger part is halved, and what is left small excludes the path.
        """
        w, pace, small = node.window, self.pace, SMALL * self.cutoff()
        by_prefill = route.prefill_pace - w.prefill_from
        by_busy = 0.0
        if route.busy > w.busy_from:
            share, drain = node.trip_share, pace.drain[node.batches]
            period = max(route.busy, route.trip) - (1 - share) * w.busy_from - share * route.trip
            by_busy = pace.decoding * (pace.rounds * period + drain * (route.busy - w.busy_from))
        if max(by_prefill, by_busy) <= _SLACK * self.cutoff():
            return self.settle(node, bound)
        if by_prefill >= by_busy:
            middle = (w.prefill_from + route.prefill_pace) / 2
            return by_prefill_at(node, middle if by_prefill > small else float(np.nextafter(route.prefill_pace, 0.0)))
        return by_busy_at(node, (w.busy_from + route.busy) / 2 if by_busy > small else float(np.nextafter(route.busy, 0.0)))

    def settle(self, node: Node, bound: float) -> list[Node]:
        """A node whose path has the window's least paces, and yet a bound below the cutoff: multipliers leave the gap."""
        try:
            _, found = self.labels.best(node, self.cutoff())
        except TooManyError:
            return self.split(node, bound)
        if found is not None:
            self.offer(node.batches, found)
        return []

    def split(self, node: Node, bound: float) -> list[Node]:
        """The window cut at its middle, or the whole choice of micro-batches solved as programs where there is one point left."""
        w = node.window
        by_prefill, by_busy = w.prefill_to - w.prefill_from, self.pace.busy_weight(node) * (w.busy_to - w.busy_from)
        if max(by_prefill, by_busy) <= 0:
            if node.batches not in self.solved:
                self.solved[node.batches] = self.solve(node.batches)
            self.proven = min(self.proven, max(bound, self.solved[node.batches]))
            return []
        if by_prefill >= by_busy:
            return by_prefill_at(node, (w.prefill_from + w.prefill_to) / 2)
        return by_busy_at(node, (w.busy_from + w.busy_to) / 2)


def by_prefill_at(node: Node, middle: float) -> list[Node]:
    """The node's window up to the prefill pace ``middle`` and above it."""
    low, high = replace(node.window, prefill_to=middle), replace(node.window, prefill_from=float(np.nextafter(middle, np.inf)))
    return [replace(node, window=low), replace(node, window=high)]


def by_busy_at(node: Node, middle: float) -> list[Node]:
    """The node's window up to the busiest round ``middle`` and above it."""
    low, high = replace(node.window, busy_to=middle), replace(node.window, busy_from=float(np.nextafter(middle, np.inf)))
    return [replace(node, window=low), replace(node, window=high)]
