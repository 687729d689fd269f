"""The planner against a planner that tries every decision: orders, subsets, cuts, options and micro-batches."""

import math

import pytest
from plan_instances import Decision, best_of_seed, every_decision, random_problem, within

from llmpq.errors import InfeasibleError
from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.simulate.barrier import with_simulated_total

HIGHS, GLPK = range(90), range(60, 130)


def judge(seed: int, solver: str) -> str:
    problem = random_problem(seed)
    expected = best_of_seed(seed)
    if expected is None:
        with pytest.raises(InfeasibleError, match=r"no plan (fits in memory|keeps the quality budget)"):
            plan(problem, "llmpq", solver=solver, gap=0.0)
        return "infeasible"
    found = plan(problem, "llmpq", solver=solver, gap=0.0)
    assert check(problem, with_simulated_total(problem, found)) == []
    assert found["objective_ms"] == pytest.approx(expected.objective_ms, rel=1e-9)
    assert found["certificate"]["bound"] <= expected.objective_ms * (1 + 1e-9)
    assert found["certificate"]["status"] == "optimal"
    return "fewer devices" if len(found["stages"]) < min(len(problem["devices"]), problem["model"]["layers"]) else "all devices"


@pytest.mark.parametrize("seed", HIGHS)
def test_highs_finds_the_optimum_of_brute_force(seed: int) -> None:
    judge(seed, "highs")


@pytest.mark.parametrize("seed", GLPK)
def test_glpk_finds_the_optimum_of_brute_force(seed: int) -> None:
    judge(seed, "glpk")


def test_the_random_problems_cover_what_they_should() -> None:
    """Otherwise the tests above say less than they seem to."""
    seeds = sorted({*HIGHS, *GLPK})
    pairs = [(random_problem(seed), best_of_seed(seed)) for seed in seeds]
    problems = [problem for problem, _ in pairs]
    solved = [(problem, best) for problem, best in pairs if best is not None]
    assert len(pairs) - len(solved) >= 10
    assert sum(len(best.devices) < len(problem["devices"]) for problem, best in solved) >= 10
    assert sum(problem["workload"]["slots"] % best.eta != 0 for problem, best in solved) >= 10
    assert sum("quality_budget" in problem["objective"] for problem in problems) >= 40
    assert sum("theta_ms" in problem["objective"] for problem in problems) >= 40
    assert sum(not problem["overlapped_sends"] for problem in problems) >= 20


@pytest.mark.parametrize("seed", range(200, 225))
def test_adabits_has_the_least_damage_of_its_order_and_micro_batches(seed: int) -> None:
    problem = random_problem(seed)
    decisions = list(every_decision(problem))
    if not decisions:
        with pytest.raises(InfeasibleError, match="no plan fits in memory"):
            plan(problem, "adabits")
        return
    found = plan(problem, "adabits")
    assert check(problem, with_simulated_total(problem, found)) == []
    order = tuple(stage["device"] for stage in found["stages"])
    rivals = [item for item in decisions if item.devices == order and same_batches(item, found)]
    assert found["omega_sum"] == pytest.approx(min(item.omega for item in rivals), rel=1e-9, abs=1e-12)
    if any(within(problem, item.omega) for item in decisions):
        assert found["quality_budget_met"] is not False


def same_batches(item: Decision, found: dict) -> bool:
    return (item.xi, item.eta) == (found["micro_batch"]["prefill"], found["micro_batch"]["decode"])


@pytest.mark.parametrize("seed", range(300, 325))
def test_one_width_baselines_follow_their_rule(seed: int) -> None:
    problem = random_problem(seed)
    one_width = [item for item in every_decision(problem) if len(set(item.options)) == 1]
    even = [item for item in one_width if max(item.sizes) - min(item.sizes) <= 1 and list(item.sizes) == sorted(item.sizes, reverse=True)]
    for strategy, decisions in (("uniform", even), ("pipeedge", one_width)):
        if not decisions:
            with pytest.raises(InfeasibleError, match=strategy):
                plan(problem, strategy)
            continue
        found = plan(problem, strategy)
        assert check(problem, with_simulated_total(problem, found)) == []
        highest = max(int(item.options[0]) for item in decisions)
        used = {option for stage in found["stages"] for option in stage["options"]}
        assert used == {str(highest)}
        rivals = [item for item in decisions if int(item.options[0]) == highest]
        if strategy == "uniform":
            assert found["objective_ms"] == pytest.approx(min(item.objective_ms for item in rivals), rel=1e-9)
        else:
            assert min(item.objective_ms for item in rivals) <= found["objective_ms"] * (1 + 1e-9)
            # A blocking send is part of its stage's time, which decode_ms is not.
            assert not problem["overlapped_sends"] or math.isclose(
                slowest_decode(found), least_slowest_decode(problem, found), rel_tol=1e-9
            )


def slowest_decode(found: dict) -> float:
    return max(stage["decode_ms"] for stage in found["stages"])


def least_slowest_decode(problem: dict, found: dict) -> float:
    """Over all cuts for the plan's order, option and micro-batches that fit."""
    devices = {device["name"]: device for device in problem["devices"]}
    order, option = [stage["device"] for stage in found["stages"]], found["stages"][0]["options"][0]
    size = str(found["micro_batch"]["decode"])
    least = math.inf
    for item in every_decision(problem):
        if item.devices != tuple(order) or set(item.options) != {option} or not same_batches(item, found):
            continue
        times = []
        for j, (name, layers) in enumerate(zip(order, item.sizes, strict=True)):
            device = devices[name]
            ends = [device["embedding"]] * (j == 0) + [device["head"]] * (j == len(order) - 1)
            parts = [device["options"][option]] * layers + ends
            times.append(device["overhead_ms"].get("decode", 0.0) + sum(part["decode_ms"][size] for part in parts))
        least = min(least, max(times))
    return least
