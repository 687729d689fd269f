"""Branch and bound over paces, teams and orders: the outer search where stages' configurations can be listed.

A node is a window of paces (``pace``) for one choice of micro-batches and, level by level, any subset of the devices, a team, an order.
The node of least bound is next: a wide window is halved, a narrow one goes one level down. What is left of a single order's narrow window
is bounded by better prices, and at last solved as an integer program within what the bound leaves of its cuts.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from llmpq.plan.ascent import ascend
from llmpq.plan.bound import Relaxation
from llmpq.plan.candidate import Counts, Floats, build
from llmpq.plan.cases import Cases
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.pace import Answer, Case, Prices, Window, order_free_bound, ordered_bound
from llmpq.plan.pace_node import ANY, ENDS, FIRST_TRY_S, NARROW, OLD, ORDER, TEAM, WIDTHS, Node, halves, inside, key_of, narrowed
from llmpq.plan.problem import Problem
from llmpq.plan.promising import promising_counts

# A team of more orders than this keeps its order-free bound, and so many of its orders are tried for plans.
MOST_ORDERS, SOME_ORDERS = 20_000, 12
# Evaluations to find better prices: of the first window of a choice of micro-batches, and of later ones that are nearly pruned (their
# bound is at least this share of the cutoff).
FIRST_STEPS, STEPS, NEAR = 16, 6, 0.97
# Steps along the slope for the windows of an order, each towards a bound at most this much better (relative): far targets overshoot.
ORDER_STEPS, LEAP = 4, 0.03
# After this many nodes the best one is followed down to a plan, with so many children looked at.
DIVES, DIVE_CHILDREN = {0, *range(20, 200, 20), *range(200, 2000, 100), *range(2000, 20000, 500)}, 24
# Dives before this many nodes try the integer program of the order where they end.
TRIES = 60


Solve = Callable[[Node, Window, float], tuple[float, bool]]


class PaceSearch:
    """``offer`` takes plans found on the way, ``cutoff`` tells what a bound must reach, ``over`` when the time is."""

    def __init__(
        self,
        problem: Problem,
        cases: Cases,
        offer: Callable[[Node, Counts], None],
        cutoff: Callable[[], float],
        over: Callable[[], bool],
    ) -> None:
        self.problem, self.cases, self.offer, self.cutoff, self.over = problem, cases, offer, cutoff, over
        self.relaxation = Relaxation(problem)
        self.omega = self.relaxation.omega
        self.budget = problem.quality_budget or 0.0
        self.heap: list[tuple[float, int, Node]] = []
        self.number = itertools.count()
        self.proven = math.inf
        self.tried: set[tuple[tuple[int, ...], MicroBatches]] = set()
        self.closed: dict[tuple[tuple[int, ...], MicroBatches], list[Window]] = {}
        self.evaluations = [0, 0, 0, 0]

    def run(self, solve: Solve) -> float:
        """Search; returns the proven bound of all that is left open.

        ``solve`` treats a window of one candidate, for so many seconds: (its bound, whether the window needs no further look).
        """
        for batches in self.problem.micro_batches:
            self.start(batches)
        for visit in itertools.count():
            if not self.heap or self.heap[0][0] >= min(self.cutoff(), self.proven) or self.over():
                break
            if visit in DIVES:
                self.dive(self.heap[0][2], solve if visit < TRIES else None)
            bound, _, node = heapq.heappop(self.heap)
            if self.settled(node):
                continue
            prefill, decode = node.case.width_ms(node.window)
            width = WIDTHS[node.level] if node.level < ORDER or key_of(node) not in self.tried else NARROW
            if prefill + decode > width * self.cutoff():
                for half in halves(node.window, prefill >= decode):
                    self.push(replace(node, window=half, age=node.age + 1), bound)
            elif node.level == TEAM and node.team is not None and self.cases.orders_of(node.team) > MOST_ORDERS:
                self.proven = min(self.proven, bound)
                self.try_orders(node)
            elif node.level < ORDER:
                for child in self.children(node):
                    self.push(child, bound)
            else:
                self.proven = min(self.proven, self.solve_rest(node, bound, solve))
        return min(self.proven, self.heap[0][0] if self.heap else math.inf)

    def try_orders(self, node: Node) -> None:
        """Plans for some orders of a team that has too many: its order-free bound is all that is proved of it."""
        for child in itertools.islice(self.children(node), SOME_ORDERS):
            self.offer_promising(child)

    def solve_rest(self, node: Node, bound: float, solve: Solve) -> float:
        """A first, short try of the integer program while the window is wide; what that leaves is halved on and solved for good."""
        key = key_of(node)
        self.offer_promising(node)
        first = key not in self.tried
        bound, window = self.remaining(node, bound)
        found, finished = solve(node, window, FIRST_TRY_S if first else math.inf)
        self.tried.add(key)
        if finished or not first:
            self.closed.setdefault(key, []).append(window)
            return max(bound, found)
        self.push(node, max(bound, found))
        return math.inf

    def remaining(self, node: Node, bound: float) -> tuple[float, Window]:
        """All open windows of a candidate taken together, to be solved at once: (their bound, the window around them)."""
        key = key_of(node)
        windows = [node.window]
        for other_bound, _, other in self.heap:
            if other.level == ORDER and key_of(other) == key:
                windows.append(other.window)
                bound = min(bound, other_bound)
        around = Window(
            min(window.prefill_from for window in windows),
            max(window.prefill_to for window in windows),
            min(window.round_from for window in windows),
            max(window.round_to for window in windows),
        )
        return bound, around

    def settled(self, node: Node) -> bool:
        """Whether the window was solved together with another one of the same candidate."""
        return node.level == ORDER and any(inside(node.window, done) for done in self.closed.get(key_of(node), []))

    def open_candidates(self) -> int:
        """How many candidates are not ruled out and not solved (after ``run``); all of a micro-batch choice while orders are open."""
        left = [node for bound, _, node in self.heap if bound < self.cutoff() and not self.settled(node)]
        unsorted = {node.batches for node in left if node.level < ORDER}
        single = {key_of(node) for node in left if node.level == ORDER and node.batches not in unsorted} - set(self.closed)
        return len(unsorted) * self.cases.order_count() - sum(batches in unsorted for _, batches in self.closed) + len(single)

    def dive(self, node: Node, solve: Solve | None) -> None:
        """Follow the better child all the way down for a good plan early; what ``solve`` proves of it is kept, nothing else."""
        while not self.over():
            prefill, decode = node.case.width_ms(node.window)
            if prefill + decode > WIDTHS[node.level] * self.cutoff():
                children = [replace(node, window=half, age=node.age + 1) for half in halves(node.window, prefill >= decode)]
            elif node.level < ORDER:
                children = list(itertools.islice(self.children(node), DIVE_CHILDREN))
            else:
                self.offer_promising(node)
                if solve is not None and key_of(node) not in self.tried:
                    self.tried.add(key_of(node))
                    whole = Window(0.0, math.inf, 0.0, math.inf)
                    bound, finished = solve(node, whole, FIRST_TRY_S)
                    if finished:
                        self.closed.setdefault(key_of(node), []).append(whole)
                        self.proven = min(self.proven, bound)
                return
            judged = [(bound, place, child) for place, (child, bound) in enumerate(self.judge(child, 0.0) for child in children)]
            bound, _, node = min(judged)
            if not math.isfinite(bound):
                return
            if node.level == ORDER:
                self.offer_promising(node)

    @property
    def most_stages(self) -> int:
        return min(len(self.problem.devices), self.problem.layers)

    def start(self, batches: MicroBatches) -> None:
        case = self.cases.subset(batches)
        limit = self.cutoff()
        if not math.isfinite(limit):
            limit = 1e12
        weight = case.decoding * (case.rounds + case.drain_share)
        window = Window(0.0, limit, 0.0, limit / weight if weight else limit)
        self.push(Node(ANY, batches, case, window, self.first_prices(batches)), 0.0)

    def first_prices(self, batches: MicroBatches) -> Prices:
        """Every option at its mean damage; the weight of a budget from the linear relaxation of one order of all devices."""
        problem = self.problem
        weight = problem.theta_ms
        if problem.quality_budget is not None:
            candidate = build(problem, tuple(range(self.most_stages)), batches)
            found = self.relaxation.solve(candidate) if (candidate.capacity >= 0).all() else None
            weight = 0.0 if found is None else found.budget
        return self.prices_at(-weight * self.omega.mean(axis=0), weight)

    def prices_at(self, options: Floats, weight: float) -> Prices:
        return Prices(options, weight, (weight - self.problem.theta_ms) * self.budget)

    def push(self, node: Node, parent: float) -> None:
        """Bound a node, drop it if it cannot win, narrow its window to what can."""
        node, bound = self.judge(node, parent)
        if bound < self.cutoff():
            heapq.heappush(self.heap, (bound, next(self.number), node))

    def judge(self, node: Node, parent: float) -> tuple[Node, float]:
        """The node with better prices and a narrower window, and its bound; inf where it cannot win."""
        self.evaluations[node.level] += 1
        best, limit = parent, self.cutoff()
        # Which of the two prices of a round binds rarely changes on the way down.
        renewed = False
        shares = (node.trip_share, 1.0 - node.trip_share) if node.level in (ANY, ORDER) else (node.trip_share,)
        for share in shares:
            bound, prices = self.priced(node, share, limit, first=parent == 0.0)
            renewed = renewed or node.age >= OLD
            if share == 0.0 and math.isfinite(bound):
                node = replace(node, window=narrowed(node, bound, limit))
            if bound > best:
                best = bound
                node = replace(node, prices=prices, trip_share=share)
            if best >= limit:
                return node, math.inf
        return replace(node, age=0 if renewed else node.age), best

    def priced(self, node: Node, share: float, limit: float, first: bool) -> tuple[float, Prices]:
        """The best bound found for a node with the round priced ``share`` by the round trip, and its prices."""
        if node.level == ORDER:
            return self.stepped_up(node, share, limit)
        answer = self.bound(node, share, node.prices)
        if (
            answer.bound >= limit
            or (share != node.trip_share and not first)
            or not (first or node.age >= OLD or answer.bound >= NEAR * limit)
        ):
            return answer.bound, node.prices
        start = np.append(node.prices.options, node.prices.weight / self.problem.layers)
        budgeted = self.problem.quality_budget is not None
        largest = node.prices.weight * float(self.omega.mean(axis=0).max()) / 2
        radius = np.append(np.full(len(start) - 1, largest), max(start[-1] / 2, 1.0) if budgeted else 0.0)

        def evaluate(point: Floats) -> tuple[float, Floats]:
            found = self.bound(node, share, self.at(point))
            return found.bound, np.append(found.options, found.weight * self.problem.layers if budgeted else 0.0)

        lowest = np.append(np.full(len(start) - 1, -np.inf), 0.0)
        best, where = ascend(evaluate, start, radius, lowest, FIRST_STEPS if first or node.age >= OLD else STEPS, limit)
        return best, self.at(where)

    def at(self, point: Floats) -> Prices:
        return self.prices_at(point[:-1], float(point[-1]) * self.problem.layers)

    def stepped_up(self, node: Node, share: float, limit: float) -> tuple[float, Prices]:
        """Some steps along the slope: with prices for every stage there are too many for cutting planes."""
        best, found, prices = -math.inf, node.prices, node.prices
        for _ in range(ORDER_STEPS):
            answer = self.bound(node, share, prices)
            if answer.bound > best:
                best, found = answer.bound, prices
            if best >= limit:
                break
            prices = self.stepped(prices, answer, limit)
        return best, found

    def stepped(self, prices: Prices, answer: Answer, limit: float) -> Prices:
        """Polyak's step towards ``limit``, the bound that would prune."""
        scale = float(self.problem.layers) if self.problem.quality_budget is not None else 0.0
        norm = float((answer.options**2).sum() + (scale * answer.weight) ** 2)
        if norm == 0.0 or not math.isfinite(limit):
            return prices
        length = (min(limit, answer.bound * (1 + LEAP)) - answer.bound) / norm
        weight = max(prices.weight + length * scale**2 * answer.weight, 0.0)
        return self.prices_at(prices.options + length * answer.options, weight)

    def bound(self, node: Node, share: float, prices: Prices) -> Answer:
        if node.level < ORDER:
            return order_free_bound(node.case, node.window, share, prices, self.omega, self.budget)
        assert node.candidate is not None
        path = ordered_bound(node.case, node.window, share, prices, self.omega)
        if path is None:
            return Answer(math.inf, np.zeros_like(prices.options))
        self.offer(node, path.counts)
        return path.answer(self.omega, self.budget - node.case.end_omega)

    def offer_promising(self, node: Node) -> None:
        """Plans of the window that look good when damage is averaged over a stage's layers."""
        for counts in promising_counts(self.problem, node.case, node.window, self.omega, node.prices.weight):
            self.offer(node, counts)

    def children(self, node: Node) -> Iterator[Node]:
        """The nodes one level down; together they hold every plan of ``node``."""
        if node.level == ANY:
            for first, last in self.cases.ends():
                yield self.below(node, self.cases.with_ends(first, last, node.batches), ends=(first, last))
            for team in self.cases.lone_teams():
                yield replace(self.below(node, self.cases.team(team, node.batches), team=team), level=TEAM)
        elif node.level == ENDS:
            for team in self.cases.teams(*node.ends):
                yield self.below(node, self.cases.team(team, node.batches), team=team)
        elif node.team is not None:
            for order in self.cases.orders(node.team):
                candidate = build(self.problem, order, node.batches)
                options = np.repeat(node.prices.options[None, :], candidate.stages, axis=0)
                for end in range(len(candidate.ends)):
                    child = self.below(node, self.cases.ordered(candidate, end), candidate=candidate, end=end)
                    yield replace(child, prices=replace(node.prices, options=options))

    def below(self, node: Node, case: Case, **known: Any) -> Node:
        return replace(node, level=node.level + 1, age=node.age + 1, case=case, window=case.tightened(node.window), **known)
