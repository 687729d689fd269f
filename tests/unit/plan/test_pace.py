"""Windows of paces: bounds hold whatever the multipliers, nothing of worth is cut away, and the listed configurations are all there are."""

import functools
import itertools
import math

import numpy as np
import pytest
from plan_instances import Decision, every_decision, random_problem, within

from llmpq.plan.labels import Labels, TooManyError, undominated_labels
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.orders import device_orders
from llmpq.plan.pace import Node, Pace, Window
from llmpq.plan.pace_prune import pruned
from llmpq.plan.parts import PartMaker
from llmpq.plan.problem import Problem
from llmpq.plan.routes import Routes
from llmpq.plan.stage_configs import preferences, run_omega, stage_configs, wanted_bytes

SHARES = (0.0, 0.4, 1.0)
SEEDS = range(80)


@functools.cache
def searched(seed: int) -> tuple[dict, Pace, dict[MicroBatches, dict], list[Decision]]:
    """A random problem, its bounds, its parts, and every decision that keeps the budget."""
    document = random_problem(seed)
    problem = Problem.from_document(document)
    routes = Routes(problem)
    maker = PartMaker(problem, routes)
    parts = maker.all()
    return document, Pace(problem, routes, maker), parts, [item for item in every_decision(document) if within(document, item.omega)]


def best(decisions: list[Decision], batches: MicroBatches) -> float:
    own = [item.objective_ms for item in decisions if (item.xi, item.eta) == (batches.xi, batches.eta)]
    return min(own, default=math.inf)


def random_weight(draw: np.random.Generator, problem: Problem) -> float:
    return problem.theta_ms if problem.quality_budget is None else float(draw.uniform(0, 100))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bound_exceeds_the_optimum_of_brute_force(seed: int) -> None:
    _, pace, parts, decisions = searched(seed)
    draw = np.random.default_rng(seed)
    for batches, share in itertools.product(pace.problem.micro_batches, SHARES):
        node = pace.snapped(Node(batches, parts[batches], Window(), share, random_weight(draw, pace.problem)))
        optimum = best(decisions, batches)
        if node is None:
            assert optimum == math.inf
            continue
        bound, route = pace.bound(node)
        assert bound <= optimum * (1 + 1e-9) + 1e-9
        assert route is None or route.objective >= bound - 1e-9 * abs(bound) or pace.allowed is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_windows_lose_no_plan_and_labels_find_the_best(seed: int) -> None:
    """Of two windows that make up one, at least one holds the best plan; labels find it exactly, and its rows survive pruning."""
    _, pace, parts, decisions = searched(seed)
    draw, labels = np.random.default_rng(seed), Labels(pace)
    for batches in pace.problem.micro_batches:
        whole = pace.snapped(Node(batches, parts[batches], Window(), 0.5, random_weight(draw, pace.problem)))
        optimum = best(decisions, batches)
        if whole is None or not math.isfinite(optimum):
            continue
        cutoff = optimum * (1 + 1e-6) + 1e-6
        prices = pace.prices(whole)
        whole = pruned(pace, whole, prices, pace.to_go(prices), cutoff)
        w = whole.window
        middle, busiest = draw.uniform(w.prefill_from, w.prefill_to), draw.uniform(w.busy_from, w.busy_to)
        prefill = [(w.prefill_from, middle), (np.nextafter(middle, np.inf), w.prefill_to)]
        busy = [(w.busy_from, busiest), (np.nextafter(busiest, np.inf), w.busy_to)]
        found = []
        for (p0, p1), (b0, b1) in itertools.product(prefill, busy):
            node = pace.snapped(Node(batches, whole.parts, Window(p0, p1, b0, b1), whole.trip_share, whole.weight))
            if node is not None:
                found.append(labels.best(node, cutoff)[0])
        assert min(found) == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_least_omega_is_that_of_brute_force(seed: int) -> None:
    document, pace, parts, _ = searched(seed)
    for batches in pace.problem.micro_batches:
        own = [item.omega for item in every_decision(document) if (item.xi, item.eta) == (batches.xi, batches.eta)]
        found = pace.least_omega(Node(batches, parts[batches], Window(), 0.0, 0.0))
        assert found == pytest.approx(min(own, default=math.inf), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_routes_are_the_device_orders(seed: int) -> None:
    problem = searched(seed)[1].problem
    routes = Routes(problem)
    listed = {(len(order), order) for order in device_orders(problem, alike=True)}
    numbers = {device: c for c, devices in enumerate(routes.devices) for device in devices}
    assert routes.orders() == len({tuple(numbers[device] for device in order) for _, order in listed})
    for _, order in listed:
        used = tuple(int(c == numbers[order[0]]) for c in range(routes.classes))
        for device in order[1:]:
            assert (used, numbers[device]) in routes.nodes
            used = tuple(count + int(c == numbers[device]) for c, count in enumerate(used))


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


@pytest.mark.parametrize("seed", range(20))
def test_damage_of_a_run_and_what_may_be_left_out(seed: int) -> None:
    """Σ omega of counts on a run is the least of all ways to hand them out; each row left out has one as good in every figure."""
    draw = np.random.default_rng(seed)
    options, layers, capacity = 3, 5, int(draw.integers(10, 60))
    sizes, omega = draw.integers(1, 12, options), draw.integers(0, 4, (layers, options)).astype(float)
    times = [draw.integers(0, 3, options).astype(float) for _ in range(2)]
    available = np.ones(options, dtype=bool)
    configs = stage_configs(available, sizes, capacity, layers)
    assert configs is not None
    rows = np.arange(len(configs.size))
    damage = run_omega(configs, omega, rows)
    for row, start in itertools.product(rows, range(layers + 1)):
        each = np.repeat(np.arange(options), configs.counts[row])
        ways = set(itertools.permutations(each.tolist())) if start + len(each) <= layers else set()
        assert damage[row, start] == min((sum(omega[start + k, b] for k, b in enumerate(way)) for way in ways), default=math.inf)
    kept = np.flatnonzero(capacity < wanted_bytes(configs, sizes, preferences(available, times, omega)))
    figures = np.column_stack([configs.size, -configs.size, *(configs.counts @ each for each in times), np.nan_to_num(damage, posinf=1e9)])
    assert all((figures[kept] <= figures[row]).all(axis=1).any() for row in rows)


def test_options_alike_in_everything_leave_one() -> None:
    same = np.array([1.0, 1.0])
    assert preferences(np.array([True, True]), [same], np.ones((3, 2))) == ((1, 0),)
    assert preferences(np.array([True, False]), [same], np.ones((3, 2))) == ()
    assert preferences(np.array([True, True]), [np.array([1.0, 2.0])], np.array([[1.0, 0.0]])) == ()


def test_labels_that_are_nowhere_smaller_go() -> None:
    figures = np.array([[2.0, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 1, 1], [3.0, 0, 1, 1, 1, 1], [3.0, 1, 1, 1, 1, 0]])
    kept = figures[undominated_labels(figures)]
    assert sorted(map(tuple, kept.tolist())) == sorted(map(tuple, figures[[1, 3, 4]].tolist()))


def test_too_many_labels_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    several = (seed for seed in SEEDS if len({item.devices for item in searched(seed)[3]}) > 5)
    _, pace, parts, decisions = searched(next(several))
    monkeypatch.setattr("llmpq.plan.labels.MOST_LABELS", 0)
    batches = next(item for item in pace.problem.micro_batches if math.isfinite(best(decisions, item)))
    node = pace.snapped(Node(batches, parts[batches], Window(), 0.0, pace.problem.theta_ms))
    assert node is not None
    with pytest.raises(TooManyError):
        Labels(pace).best(node, 1e12)
