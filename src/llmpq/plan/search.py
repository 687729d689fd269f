"""The outer search: all device orders and micro-batches, bounded at once by windows of paces, or one by one as integer programs."""

import heapq
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmpq.plan.assign import assign
from llmpq.plan.bound import Multipliers, Relaxation
from llmpq.plan.candidate import Assignment, Candidate, build, objective_ms, within_budget
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.milp import build_model
from llmpq.plan.orders import device_orders
from llmpq.plan.pace import Route
from llmpq.plan.pace_search import PaceSearch
from llmpq.plan.parts import PartMaker
from llmpq.plan.problem import Problem
from llmpq.plan.routes import Routes
from llmpq.plan.solve import SolverError, solve

# Bounds come from sums of doubles: a bound must be better than the incumbent by more than rounding to prune at gap 0.
ROUNDING = 1e-9
# How much to tighten memory and budget where a solver's answer breaks them within its own tolerance (1e-7 for both solvers).
SHRINKS = (0.0, 3e-7, 3e-6)
# The cutoff row lies this far (relative) above the cutoff, clear of the solvers' feasibility tolerances.
CUTOFF_SLACK = 3e-6
# How many sets of multipliers are remembered per device order and per number of stages.
POOL = 6
# So many candidates (device order and micro-batches) are looked at one by one; of more, baselines are compared over the first few.
MOST, MOST_COMPARED = 20_000, 500
_CHEAP, _REFRESHED, _RELAXED = range(3)


@dataclass(frozen=True)
class SearchResult:
    """``bound_ms`` holds for every plan of every candidate; it is inf where the search proves that there is none.

    ``failed`` of the ``solved`` programs ended in an error of the solver; their bounds are those of their relaxations.
    """

    best: Assignment | None
    objective_ms: float
    bound_ms: float
    enumerated: int
    pruned: int
    solved: int
    failed: int


class _Search:
    def __init__(self, problem: Problem, solver: str, deadline: float, gap: float, seed: int) -> None:
        self.problem, self.solver, self.deadline, self.gap, self.seed = problem, solver, deadline, gap, seed
        self.relaxation = Relaxation(problem)
        self.best: Assignment | None = None
        self.objective = math.inf
        self.failed = 0
        self.solved: set[tuple[tuple[int, ...], MicroBatches]] = set()
        self.pool: dict[int | tuple[int, ...], list[Multipliers]] = {}

    def offer(self, candidate: Candidate, assignment: Assignment) -> None:
        """Take ``assignment`` as the incumbent if it is feasible and better, or as good and earlier in a fixed order."""
        if not candidate.fits(assignment.counts(self.problem.options), candidate.end(assignment.ends)) or not within_budget(
            self.problem, assignment.omega_sum(self.problem)
        ):
            return
        value = objective_ms(self.problem, candidate, assignment)
        if value < self.objective:
            self.best, self.objective = assignment, value

    @property
    def cutoff(self) -> float:
        """A candidate whose bound reaches this cannot improve the incumbent by more than the gap."""
        return self.objective * (1 - max(self.gap, ROUNDING)) if math.isfinite(self.objective) else math.inf

    def cheap_bound(self, candidate: Candidate) -> float:
        """A bound from multipliers already known: those of other candidates of the same order and of as many stages."""
        if (candidate.capacity < 0).any():
            return math.inf
        value = self.relaxation.evaluate(candidate, self.relaxation.trivial(candidate))
        for key in (candidate.order, candidate.stages):
            for prices in reversed(self.pool.get(key, [])):
                value = max(value, self.relaxation.evaluate(candidate, prices))
                if value >= self.cutoff:
                    return value
        return value

    def relaxed_bound(self, candidate: Candidate) -> float:
        """The bound of the candidate's own linear relaxation; inf where that proves that it has no plan."""
        prices = self.relaxation.solve(candidate)
        if prices is None:
            return math.inf
        for key in (candidate.order, candidate.stages):
            pool = self.pool.setdefault(key, [])
            pool.append(prices)
            del pool[:-POOL]
        return self.relaxation.evaluate(candidate, prices)

    def solve_candidate(self, candidate: Candidate, seconds: float) -> float:
        """Solve one integer program for at most ``seconds``; offers its plan and returns the proven bound."""
        self.solved.add((candidate.order, candidate.batches))
        bound, stop = math.inf, min(self.deadline, time.monotonic() + seconds)
        for shrink in SHRINKS:
            cutoff = self.cutoff if math.isfinite(self.objective) else None
            limit = None if cutoff is None else cutoff + CUTOFF_SLACK * abs(cutoff)
            model = build_model(self.problem, candidate, cutoff_ms=limit, shrink=shrink)
            try:
                solution = solve(model, self.solver, time_limit_s=stop - time.monotonic(), gap=self.gap, seed=self.seed)
            except SolverError:
                if self.best is None:
                    raise
                self.failed += 1
                return -math.inf  # nothing is proven here: the candidate keeps the bound that it came with
            if shrink == 0.0:
                bound = solution.bound if solution.status != "infeasible" else (math.inf if cutoff is None else cutoff)
            if solution.counts is None:
                break
            stages, ends = assign(self.problem, solution.counts), candidate.ends[solution.end]
            assignment = Assignment(candidate.order, candidate.batches, stages, ends)
            self.offer(candidate, assignment)
            if candidate.fits(solution.counts, solution.end) and within_budget(self.problem, assignment.omega_sum(self.problem)):
                break
        return bound

    def offer_route(self, routes: Routes, maker: PartMaker, batches: MicroBatches, route: Route) -> None:
        """Try a plan met while bounding, if it is better."""
        if route.objective >= self.objective * (1 + ROUNDING):
            return
        candidate = build(self.problem, routes.order(route.classes), batches)
        stages = assign(self.problem, route.counts(maker.configs))
        self.offer(candidate, Assignment(candidate.order, candidate.batches, stages, route.ends))


def search(
    problem: Problem,
    *,
    solver: str,
    time_limit_s: float,
    gap: float,
    seed: int = 0,
    start: Iterable[Assignment] = (),
) -> SearchResult:
    """Best plan over every device order and micro-batch choice, with a bound proven over all of them.

    ``start`` are known plans, the first incumbents. Where the ways to fill a stage can be listed, all orders are bounded at once by windows
    of paces (``pace_search``). Else each candidate gets a certified lower bound (``bound``); those that cannot beat the incumbent by more
    than the relative ``gap`` are pruned, the rest are solved as integer programs, most promising first. Of more than MOST
    candidates only the first orders are then looked at, and nothing is proved.
    """
    run = _Search(problem, solver, time.monotonic() + time_limit_s, gap, seed)
    for assignment in start:
        run.offer(build(problem, assignment.order, assignment.batches), assignment)
    routes = Routes(problem)
    maker = PartMaker(problem, routes)
    if maker.usable:
        return _search_by_pace(run, routes, maker)
    listed, complete = some_candidates(problem, MOST), is_complete(problem, MOST)
    found = _search_by_relaxation(run, listed, LeastOmega(problem, listed), run.deadline)
    return found if complete else replace(found, bound_ms=0.0)


def _search_by_pace(run: _Search, routes: Routes, maker: PartMaker) -> SearchResult:
    """Windows of paces, for all orders at once (``pace_search``)."""

    def offer(batches: MicroBatches, route: Route) -> None:
        run.offer_route(routes, maker, batches, route)

    def solve_all(batches: MicroBatches) -> float:
        if not is_complete(run.problem, MOST):
            return -math.inf
        candidates = [build(run.problem, order, batches) for order in device_orders(run.problem)]
        return _search_by_relaxation(run, candidates, None, run.deadline).bound_ms

    paces = PaceSearch(run.problem, routes, maker, offer, lambda: run.cutoff, lambda: time.monotonic() >= run.deadline)
    proven = paces.run(solve_all)
    orders = routes.orders()
    enumerated = orders * len(run.problem.micro_batches)
    bound = min(proven, run.cutoff, run.objective)
    pruned = max(enumerated - orders * len(paces.left) - len(run.solved), 0)
    return SearchResult(run.best, run.objective, bound, enumerated, pruned, len(run.solved), run.failed)


def _search_by_relaxation(run: _Search, candidates: list[Candidate], least: LeastOmega | None, pause: float) -> SearchResult:
    """One candidate after the other, bounded by linear relaxations and solved as a program, until ``pause`` (monotonic time)."""
    # Entries (bound, what it came from, number): cheap bounds are replaced by relaxed ones, and those by programs, only where needed.
    feasible = [least is None or within_budget(run.problem, least.least(candidate)) for candidate in candidates]
    heap = [(run.cheap_bound(candidates[index]) if feasible[index] else math.inf, _CHEAP, index) for index in range(len(candidates))]
    heapq.heapify(heap)
    proven = math.inf
    while heap and heap[0][0] < run.cutoff and time.monotonic() < pause:
        bound, level, index = heapq.heappop(heap)
        if level == _CHEAP:
            heapq.heappush(heap, (max(bound, run.cheap_bound(candidates[index])), _REFRESHED, index))
        elif level == _REFRESHED:
            heapq.heappush(heap, (max(bound, run.relaxed_bound(candidates[index])), _RELAXED, index))
        else:
            proven = min(proven, max(bound, run.solve_candidate(candidates[index], pause - time.monotonic())))
    open_bound = heap[0][0] if heap else math.inf
    pruned = sum(bound >= run.cutoff for bound, _, _ in heap)
    bound = min(proven, open_bound, run.objective)
    return SearchResult(run.best, run.objective, bound, len(candidates), pruned, len(run.solved), run.failed)


def compared_candidates(problem: Problem) -> list[Candidate]:
    """What the baselines are chosen from: every device order with every choice of micro-batches, or some where those are too many."""
    return some_candidates(problem, MOST if is_complete(problem, MOST) else MOST_COMPARED)


def some_candidates(problem: Problem, most: int) -> list[Candidate]:
    """Every distinct device order with every choice of micro-batches, or, of more than about ``most``, the first orders (longest first)."""
    orders = itertools.islice(device_orders(problem), _most_orders(problem, most))
    return [build(problem, order, batches) for order in orders for batches in problem.micro_batches]


def is_complete(problem: Problem, most: int) -> bool:
    """Whether ``some_candidates`` are all of them."""
    return next(itertools.islice(device_orders(problem), _most_orders(problem, most), None), None) is None


def _most_orders(problem: Problem, most: int) -> int:
    return max(most // len(problem.micro_batches), 1)
