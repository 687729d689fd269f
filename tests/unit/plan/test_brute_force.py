"""The planner against a planner that tries every decision: orders, subsets, cuts, options and micro-batches."""

import math

import pytest
from plan_instances import Decision, best_of_seed, every_decision, random_problem, within

from llmpq.errors import InfeasibleError
from llmpq.plan.check import check
from llmpq.plan.orders import exchangeable_classes
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.simulate.predict import with_simulation

# Each solver judges 310 problems: these every time, and the campaign where slow tests run.
HIGHS, GLPK = range(90), range(60, 130)
HIGHS_CAMPAIGN, GLPK_CAMPAIGN = range(1000, 1220), range(1100, 1340)


def judge(seed: int, solver: str) -> str:
    problem = random_problem(seed)
    expected = best_of_seed(seed)
    if expected is None:
        with pytest.raises(InfeasibleError, match=r"no plan (fits in memory|keeps the quality budget)"):
            plan(problem, "llmpq", solver=solver, gap=0.0)
        return "infeasible"
    found = plan(problem, "llmpq", solver=solver, gap=0.0)
    assert check(problem, with_simulation(problem, found)) == []
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", HIGHS_CAMPAIGN)
def test_campaign_highs(seed: int) -> None:
    judge(seed, "highs")


@pytest.mark.slow
@pytest.mark.parametrize("seed", GLPK_CAMPAIGN)
def test_campaign_glpk(seed: int) -> None:
    judge(seed, "glpk")


@pytest.mark.parametrize("seed", range(0, 120, 4))
@pytest.mark.parametrize("solver", ["highs", "glpk"])
def test_programs_find_the_optimum_where_configurations_cannot_be_listed(seed: int, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search by relaxations and integer programs, which larger problems need."""
    monkeypatch.setattr("llmpq.plan.stage_configs.MOST_CONFIGS", 0)
    judge(seed, solver)


@pytest.mark.parametrize("seed", range(0, 120, 4))
def test_programs_find_the_optimum_where_labels_are_too_many(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of paces cut down to points, and what is open there solved as programs."""
    monkeypatch.setattr("llmpq.plan.labels.MOST_LABELS", 0)
    judge(seed, "highs")


def test_the_random_problems_cover_what_they_should() -> None:
    """Otherwise the tests above say less than they seem to."""
    seeds = sorted({*HIGHS, *GLPK})
    pairs = [(random_problem(seed), best_of_seed(seed)) for seed in seeds]
    problems = [problem for problem, _ in pairs]
    assert sum(ties(problem, best) > 1 for problem, best in pairs if best is not None) >= 10
    solved = [(problem, best) for problem, best in pairs if best is not None]
    assert len(pairs) - len(solved) >= 10
    assert sum(len(best.devices) < len(problem["devices"]) for problem, best in solved) >= 10
    assert sum(problem["workload"]["slots"] % best.eta != 0 for problem, best in solved) >= 10
    assert sum("quality_budget" in problem["objective"] for problem in problems) >= 40
    assert sum("theta_ms" in problem["objective"] for problem in problems) >= 40
    assert sum(not problem["overlapped_sends"] for problem in problems) >= 20
    assert sum("8" in best.ends or "4" in best.ends for problem, best in solved if "16" in problem["end_options"]) >= 5
    assert sum(any("/kv8" in option for option in best.options) for _, best in solved) >= 5
    assert sum(len(set(exchangeable_classes(Problem.from_document(problem)))) < len(problem["devices"]) for problem in problems) >= 10
    assert sum(any("uses" in device for device in problem["devices"]) for problem, _ in solved) >= 20
    assert sum(problem["tied_embeddings"] and len(best.devices) == 1 and best.ends[0] == best.ends[1] for problem, best in solved) >= 10


def ties(problem: dict, best: Decision) -> int:
    """How many decisions are as good as the best one."""
    return sum(within(problem, item.omega) and item.objective_ms <= best.objective_ms * (1 + 1e-9) for item in every_decision(problem))


@pytest.mark.parametrize("seed", range(200, 225))
def test_adabits_has_the_least_damage_of_its_order_and_micro_batches(seed: int) -> None:
    problem = random_problem(seed)
    decisions = list(every_decision(problem))
    if not decisions:
        with pytest.raises(InfeasibleError, match="no plan fits in memory"):
            plan(problem, "adabits")
        return
    found = plan(problem, "adabits")
    assert check(problem, with_simulation(problem, found)) == []
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
        assert check(problem, with_simulation(problem, found)) == []
        highest = max(width(item.options[0]) for item in decisions)
        used = {option for stage in found["stages"] for option in stage["options"]}
        assert {width(option) for option in used} == {highest}
        rivals = with_gentlest_ends(problem, [item for item in decisions if width(item.options[0]) == highest])
        if strategy == "uniform":
            best = min(rivals, key=lambda item: (not within(problem, item.omega), item.objective_ms))
            assert found["objective_ms"] == pytest.approx(best.objective_ms, rel=1e-9)
        else:
            kept = [item for item in rivals if within(problem, item.omega) or found["quality_budget_met"] is False]
            assert min(item.objective_ms for item in kept) <= found["objective_ms"] * (1 + 1e-9)
            # A blocking send is part of its stage's time, which decode_ms is not.
            assert not problem["overlapped_sends"] or math.isclose(
                slowest_decode(found), least_slowest_decode(problem, found), rel_tol=1e-9
            )


def width(option: str) -> int:
    return int(option.partition("/")[0])


def with_gentlest_ends(problem: dict, decisions: list[Decision]) -> list[Decision]:
    """Of those that differ in nothing but cut and end options, the ones whose ends do the least damage, then have the most bits."""

    def damage(item: Decision) -> tuple[float, int]:
        omega = sum(problem["end_omega"][end][option] for end, option in zip(("embedding", "head"), item.ends, strict=True))
        return omega, -sum(map(int, item.ends))

    def rule(item: Decision) -> tuple:
        return item.devices, item.xi, item.eta, item.options[0]

    least: dict[tuple, tuple[float, int]] = {}
    for item in decisions:
        least[rule(item)] = min(damage(item), least.get(rule(item), (math.inf, 0)))
    return [item for item in decisions if damage(item) == least[rule(item)]]


def slowest_decode(found: dict) -> float:
    return max(stage["decode_ms"] for stage in found["stages"])


def least_slowest_decode(problem: dict, found: dict) -> float:
    """Over all cuts for the plan's order, option and micro-batches that fit."""
    devices = {device["name"]: device for device in problem["devices"]}
    order, option = [stage["device"] for stage in found["stages"]], found["stages"][0]["options"][0]
    ends = found["stages"][0]["embedding_option"], found["stages"][-1]["head_option"]
    size = str(found["micro_batch"]["decode"])
    least = math.inf
    for item in every_decision(problem):
        if item.devices != tuple(order) or set(item.options) != {option} or item.ends != ends or not same_batches(item, found):
            continue
        times = []
        for j, (name, layers) in enumerate(zip(order, item.sizes, strict=True)):
            device = devices[name]
            at_ends = [device["embedding"][ends[0]]] if j == 0 else []
            at_ends += [device["head"][ends[1]]] if j == len(order) - 1 else []
            parts = [device["options"][option]] * layers + at_ends
            times.append(device["overhead_ms"].get("decode", 0.0) + sum(part["decode_ms"][size] for part in parts))
        least = min(least, max(times))
    return least
