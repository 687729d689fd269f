"""Whole plans met when every choice of micro-batches is bounded once, for all device orders: where a descent does well to begin."""

import math

from llmpq.plan.candidate import Candidate, Counts, build
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.pace import Route
from llmpq.plan.pace_search import PaceSearch
from llmpq.plan.parts import PartMaker
from llmpq.plan.problem import Problem
from llmpq.plan.routes import Routes

_GAP = 1e-3  # windows whose bound is this close to the best plan met are left out


def first_paths(problem: Problem, count: int) -> list[tuple[Candidate, Counts, int]]:
    """Up to ``count`` plans that keep the budget, of different candidates, best first: layers by stage and option, number of the ends.

    None where the ways to fill a stage cannot be listed.
    """
    routes = Routes(problem)
    maker = PartMaker(problem, routes)
    if not maker.usable:
        return []
    met: dict[tuple[tuple[int, ...], MicroBatches], Route] = {}
    best = math.inf

    def offer(batches: MicroBatches, route: Route) -> None:
        nonlocal best
        key = (tuple(route.classes), batches)
        if key not in met or route.objective < met[key].objective:
            met[key] = route
        best = min(best, route.objective)

    PaceSearch(problem, routes, maker, offer, lambda: best * (1 - _GAP), lambda: False).glance()
    found = []
    for (classes, batches), route in sorted(met.items(), key=lambda item: item[1].objective)[:count]:
        candidate = build(problem, routes.order(list(classes)), batches)
        found.append((candidate, route.counts(maker.configs), candidate.end(route.ends)))
    return found
