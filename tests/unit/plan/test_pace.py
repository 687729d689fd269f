"""Windows of paces: their bounds hold, their windows lose nothing, and the listed configurations are all there are."""

import itertools
import math

import numpy as np
import pytest
from plan_instances import every_decision, random_problem

from llmpq.plan.candidate import build
from llmpq.plan.cases import Cases
from llmpq.plan.orders import device_orders
from llmpq.plan.pace import Prices, Window, order_free_bound, ordered_bound
from llmpq.plan.problem import Problem
from llmpq.plan.stage_configs import stage_configs

TRIP_SHARES = (0.0, 0.4, 1.0)
WHOLE = Window(0.0, 1e12, 0.0, 1e12)


def best_by_brute_force(document: dict, names: tuple[str, ...] | None = None) -> float:
    objective = document["objective"]
    found = [
        each.objective_ms
        for each in every_decision(document)
        if (names is None or each.devices == names) and each.omega <= objective.get("quality_budget", math.inf)
    ]
    return min(found, default=math.inf)


def random_prices(draw: np.random.Generator, problem: Problem, stages: int | None = None) -> Prices:
    shape = (len(problem.options),) if stages is None else (stages, len(problem.options))
    weight = problem.theta_ms if problem.quality_budget is None else float(draw.uniform(0, 100))
    budget = problem.quality_budget or 0.0
    return Prices(draw.normal(0, 10, shape), weight, (weight - problem.theta_ms) * budget)


@pytest.mark.parametrize("seed", range(120))
def test_no_bound_exceeds_the_optimum_of_brute_force(seed: int) -> None:
    document = random_problem(seed)
    problem, draw = Problem.from_document(document), np.random.default_rng(seed)
    cases, optimum = Cases(problem), best_by_brute_force(document)
    omega = np.array([problem.omega[option] for option in problem.options]).T
    budget = problem.quality_budget or 0.0
    free = []
    for batches, share in itertools.product(problem.micro_batches, TRIP_SHARES):
        prices = random_prices(draw, problem)
        free.append(order_free_bound(cases.subset(batches), WHOLE, share, prices, omega, budget).bound)
    limit = optimum * (1 + 1e-9) + 1e-9
    assert min(free) <= limit
    names = [device.name for device in problem.devices]
    for order in device_orders(problem):
        own = best_by_brute_force(document, tuple(names[index] for index in order))
        bounds = []
        for batches in problem.micro_batches:
            candidate = build(problem, order, batches)
            for end, share in itertools.product(range(len(candidate.ends)), TRIP_SHARES):
                path = ordered_bound(cases.ordered(candidate, end), WHOLE, share, random_prices(draw, problem, len(order)), omega)
                bounds.append(math.inf if path is None else path.bound)
        assert min(bounds) <= own * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("seed", range(60))
def test_a_team_s_bound_holds_for_each_of_its_orders(seed: int) -> None:
    """The order-free relaxation: counts per device class, the best link for everyone."""
    problem, draw = Problem.from_document(random_problem(seed)), np.random.default_rng(seed)
    cases = Cases(problem)
    omega = np.array([problem.omega[option] for option in problem.options]).T
    budget, seen = problem.quality_budget or 0.0, set()
    teams = [*cases.lone_teams(), *(team for pair in cases.ends() for team in cases.teams(*pair))]
    for team, batches, share in itertools.product(teams, problem.micro_batches, TRIP_SHARES):
        prices = random_prices(draw, problem)
        free = order_free_bound(cases.team(team, batches), WHOLE, share, prices, omega, budget).bound
        for order in cases.orders(team):
            seen.add(order)
            candidate = build(problem, order, batches)
            same = Prices(np.repeat(prices.options[None, :], len(order), axis=0), prices.weight, prices.offset)
            for end in range(len(candidate.ends)):
                path = ordered_bound(cases.ordered(candidate, end), WHOLE, share, same, omega)
                assert free <= (math.inf if path is None else path.bound + 1e-9 * max(1.0, abs(path.bound)))
    assert seen == set(device_orders(problem))
    assert cases.order_count() == len(seen)


@pytest.mark.parametrize("seed", range(20))
def test_stage_configurations_are_all_that_fit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options, layers, capacity = int(draw.integers(1, 4)), int(draw.integers(1, 6)), int(draw.integers(0, 40))
    available, sizes = draw.random(options) < 0.8, draw.integers(0, 12, options)
    found = stage_configs(available, sizes, capacity, layers)
    assert found is not None
    expected = {
        counts
        for counts in itertools.product(range(layers + 1), repeat=options)
        if 1 <= sum(counts) <= layers and not np.array(counts)[~available].any() and np.array(counts) @ sizes <= capacity
    }
    assert {tuple(row) for row in found.counts.tolist()} == expected
    assert len(found.counts) == len(expected)
    assert (found.counts.sum(axis=1) == found.size).all()
    assert (found.counts @ sizes == found.bytes).all()
    for size in range(layers + 1):
        assert (found.size[found.first[size] : found.first[size + 1]] == size).all()
