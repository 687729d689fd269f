"""The planner as a whole: certificates, guard, determinism, monotonicity, messages, and what it may not import."""

import argparse
import copy
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_instances import best_of_seed, cluster_problem, random_problem

from llmpq import artifacts
from llmpq.commands import check as check_command
from llmpq.commands import plan as plan_command
from llmpq.errors import ConfigError, InfeasibleError
from llmpq.plan import search as search_module
from llmpq.plan import solve as solve_module
from llmpq.plan.bound import Multipliers, Relaxation
from llmpq.plan.candidate import build
from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.plan.strategies import BASELINES
from llmpq.simulate.predict import with_simulation

PROBLEM_FILE = Path(__file__).parents[2] / "lp" / "problem.json"
PROBLEM = json.loads(PROBLEM_FILE.read_text())
THETA, BUDGET = {"theta_ms": 1000.0}, {"quality_budget": 0.3}


@pytest.mark.parametrize("objective", [THETA, BUDGET], ids=["theta", "budget"])
@pytest.mark.parametrize("speeds", [[1.0], [1.0, 2.0], [1.0, 2.0, 1.0]], ids=["solo", "duo", "trio"])
def test_both_solvers_prove_the_same_plan_value_in_seconds(speeds: list[float], objective: dict[str, float]) -> None:
    problem = cluster_problem(speeds, objective)
    glpk, highs = (plan(problem, "llmpq", solver=solver, gap=0.0) for solver in ("glpk", "highs"))
    assert glpk["objective_ms"] == pytest.approx(highs["objective_ms"], rel=1e-7)
    for body in (glpk, highs):
        assert check(problem, with_simulation(problem, body)) == []
        certificate = body["certificate"]
        assert certificate["status"] == "optimal"
        assert certificate["gap"] <= 1e-6
        found = certificate["candidates"]
        assert found["pruned"] + found["solved"] == found["enumerated"]
        assert found["solved"] < 0.2 * found["enumerated"]
        assert certificate["seconds"] < 20
    assert glpk["certificate"]["solver_version"].startswith("GLPK 5")
    assert highs["certificate"]["solver_version"].startswith("HiGHS 1.")


@pytest.mark.parametrize("objective", [THETA, {"theta_ms": 0.0}, BUDGET, {"quality_budget": 0.05}], ids=str)
def test_never_worse_than_a_baseline_within_the_budget(objective: dict[str, float]) -> None:
    problem = cluster_problem([1.0, 2.5], objective, seed=7)
    best = plan(problem, "llmpq")
    for strategy in BASELINES:
        body = plan(problem, strategy)
        assert check(problem, body) == []
        assert body["certificate"]["status"] == "heuristic"
        if body["quality_budget_met"] is not False:
            assert best["objective_ms"] <= body["objective_ms"]
        assert best["baselines"][strategy]["objective_ms"] == body["objective_ms"]


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_the_same_input_gives_the_same_plan(solver: str) -> None:
    problem = cluster_problem([1.0, 2.0], BUDGET)
    first, again = plan(problem, "llmpq", solver=solver, seed=3), plan(problem, "llmpq", solver=solver, seed=3)
    for body in (first, again):
        del body["certificate"]["seconds"]
    assert first == again


@pytest.mark.parametrize("objective", [THETA, BUDGET], ids=["theta", "budget"])
def test_when_time_is_over_the_best_known_plan_comes_with_an_honest_gap(objective: dict[str, float]) -> None:
    problem = cluster_problem([1.0, 2.0, 3.0], objective)
    hurried, proven = plan(problem, "llmpq", time_limit=1e-6), plan(problem, "llmpq", gap=0.0)
    assert check(problem, with_simulation(problem, hurried)) == []
    assert hurried["certificate"]["status"] == "feasible"
    assert hurried["certificate"]["candidates"]["solved"] == 0
    assert hurried["certificate"]["bound"] <= proven["objective_ms"] <= hurried["objective_ms"]
    assert hurried["certificate"]["gap"] > 1e-4
    # Baselines take a share of the time only: the first orders are compared, with time enough all of them.
    assert 0 < hurried["certificate"]["candidates"]["compared"] <= search_module.MOST_COMPARED
    assert proven["certificate"]["candidates"]["compared"] == proven["certificate"]["candidates"]["enumerated"]


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_at_a_thousandth_of_a_second_every_solvable_problem_has_a_plan(solver: str) -> None:
    """Never an error while a plan is known: the baselines' plans come first, and the least damage decides whether there is one."""
    solved = 0
    for seed in range(700, 740):
        problem, best = random_problem(seed), best_of_seed(seed)
        if best is None:
            with pytest.raises(InfeasibleError):
                plan(problem, "llmpq", solver=solver, time_limit=0.001)
            continue
        solved += 1
        hurried = plan(problem, "llmpq", solver=solver, time_limit=0.001)
        assert check(problem, hurried) == []
        certificate = hurried["certificate"]
        assert certificate["bound"] <= best.objective_ms * (1 + 1e-9) <= hurried["objective_ms"] * (1 + 2e-9)
        assert certificate["gap"] == pytest.approx(1 - certificate["bound"] / hurried["objective_ms"], abs=1e-9)
    assert solved >= 25


def test_a_solver_that_breaks_down_leaves_the_known_plan_and_an_honest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise solve_module.SolverError("the solver ended with 'numerical trouble'")

    problem = cluster_problem([1.0, 2.0], THETA)
    proven = plan(problem, "llmpq", gap=0.0)
    monkeypatch.setattr("llmpq.plan.stage_configs.MOST_CONFIGS", 0)  # programs are solved where configurations cannot be listed
    monkeypatch.setattr(search_module, "solve", broken)
    found = plan(problem, "llmpq", gap=0.0)
    assert check(problem, found) == []
    certificate = found["certificate"]
    assert certificate["candidates"]["failed"] >= 1
    assert certificate["bound"] <= proven["objective_ms"] <= found["objective_ms"]
    assert certificate["status"] == "feasible"


@pytest.mark.parametrize("seed", range(400, 412))
def test_bounds_hold_for_any_multipliers(seed: int) -> None:
    """Weak duality: random prices, and those of the linear relaxation, stay below the optimum of the whole problem."""
    document, best = random_problem(seed), best_of_seed(seed)
    problem, draw = Problem.from_document(document), random.Random(seed)
    relaxation = Relaxation(problem)
    lowest = float("inf")
    for candidate in search_module.compared_candidates(problem):
        if not (candidate.capacity > 0).all():
            continue
        prices = relaxation.solve(candidate)
        if prices is None:
            continue
        tight = relaxation.evaluate(candidate, prices)
        lowest = min(lowest, tight)
        resources, stages = candidate.stages + len(candidate.times["decode"].link_rest), candidate.stages

        def shares(count: int, total: float) -> np.ndarray:
            values = np.array([draw.random() for _ in range(count)])
            return values * total / values.sum()

        rounds = shares(resources + 1, max(candidate.new_tokens - 2, 0))
        positive = [np.array([draw.uniform(0, 50) for _ in range(stages)]) for _ in range(2)]
        budget = draw.uniform(0, 50) if problem.quality_budget is not None else 0.0
        loose = Multipliers(shares(resources, 1.0), shares(resources, 1.0), rounds[:-1], rounds[-1], *positive, budget)
        assert relaxation.evaluate(candidate, loose) <= tight + 1e-6 * max(1.0, abs(tight))
    assert best is None or lowest <= best.objective_ms * (1 + 1e-9)


def objective_of(problem: dict[str, Any]) -> float:
    try:
        return plan(problem, "llmpq", solver="highs", gap=0.0)["objective_ms"]
    except InfeasibleError:
        return float("inf")


@pytest.mark.parametrize("seed", range(500, 508))
def test_more_memory_a_faster_device_or_a_larger_budget_never_hurts(seed: int) -> None:
    problem, draw = random_problem(seed), random.Random(seed)
    before, device = objective_of(problem), draw.randrange(len(problem["devices"]))
    roomier, faster = copy.deepcopy(problem), copy.deepcopy(problem)
    roomier["devices"][device]["memory_bytes"] += draw.randint(1, 100)
    for part in faster["devices"][device]["options"].values():
        part["decode_ms"] = {size: ms * 0.7 for size, ms in part["decode_ms"].items()}
    assert objective_of(roomier) <= before * (1 + 1e-9)
    assert objective_of(faster) <= before * (1 + 1e-9)
    if "quality_budget" in problem["objective"]:
        lenient = {**problem, "objective": {"quality_budget": problem["objective"]["quality_budget"] + draw.random()}}
        assert objective_of(lenient) <= before * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(520, 528))
def test_the_order_of_lists_and_the_unit_of_time_do_not_matter(seed: int) -> None:
    problem, draw = random_problem(seed), random.Random(seed)
    shuffled = copy.deepcopy(problem)
    for key in ("devices", "options", "end_options", "links"):
        draw.shuffle(shuffled[key])
    scaled = copy.deepcopy(problem)
    for device in scaled["devices"]:
        for part in (part for key in ("options", "embedding", "head") for part in device[key].values()):
            for phase in ("prefill_ms", "decode_ms"):
                part[phase] = {size: 4 * ms for size, ms in part[phase].items()}
        device["overhead_ms"] = {phase: 4 * ms for phase, ms in device["overhead_ms"].items()}
    for link in scaled["links"]:
        link.update(alpha_ms=4 * link["alpha_ms"], bytes_per_ms=link["bytes_per_ms"] / 4)
    if "theta_ms" in scaled["objective"]:
        scaled["objective"]["theta_ms"] *= 4
    expected = objective_of(problem)
    assert objective_of(shuffled) == pytest.approx(expected, rel=1e-9)
    assert objective_of(scaled) == pytest.approx(4 * expected, rel=1e-9)


def test_under_a_budget_waiting_stages_get_better_options_for_nothing() -> None:
    """The program minimises time alone; with a generous budget the stage that waits still takes the harmless option where it fits."""
    problem = cluster_problem([1.0, 6.0], {"quality_budget": 100.0})
    body = plan(problem, "llmpq", gap=0.0)
    assert check(problem, body) == []
    problem["objective"] = {"theta_ms": 1e-6}
    cheapest = plan(problem, "llmpq", gap=0.0)
    assert body["predicted"]["total_s"] == pytest.approx(cheapest["predicted"]["total_s"], rel=1e-6)
    assert body["omega_sum"] <= cheapest["omega_sum"] * 1.05


def with_memory(*memory_bytes: int, objective: dict[str, float]) -> dict[str, Any]:
    devices = [{**device, "memory_bytes": size} for device, size in zip(PROBLEM["devices"], memory_bytes, strict=True)]
    return {**PROBLEM, "devices": devices, "objective": objective}


def test_a_baseline_without_a_plan_says_why() -> None:
    problem = with_memory(440, 200, 200, objective={"theta_ms": 1.0})
    with pytest.raises(InfeasibleError, match=r"uniform: no single width fits on an even split .* at the lowest option '4' device '"):
        plan(problem, "uniform")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "magic"}, "unknown strategy 'magic'; strategies are llmpq, llmpq-transfer, adabits, pipeedge, uniform, "),
        ({"solver": "cplex"}, "unknown solver 'cplex'; solvers are glpk, highs"),
        ({"time_limit": 0}, "time limit must be > 0"),
        ({"gap": 1.5}, "0 <= gap < 1"),
    ],
)
def test_unknown_names_and_senseless_limits_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(PROBLEM, **arguments)


def test_glpk_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    solve_module._glpsol.cache_clear()
    assert plan(PROBLEM, "llmpq", solver="glpk")["certificate"]["solver_version"] == "GLPK 5.0"


def test_planning_and_checking_import_nothing_heavy(tmp_path: Path) -> None:
    """Neither torch nor the workflow's packages, also not by way of a solver interface."""
    program = (
        "import sys\n"
        "from llmpq.cli import main\n"
        f"assert main(['plan', {str(PROBLEM_FILE)!r}, '--out', {str(tmp_path / 'plan.json')!r}, '--solver', sys.argv[1]]) == 0\n"
        f"assert main(['check', {str(PROBLEM_FILE)!r}, {str(tmp_path / 'plan.json')!r}]) == 0\n"
        "print(sorted({'torch', 'pandas', 'snakemake', 'mlflow', 'transformers', 'omegaconf', 'hydra'} & set(sys.modules)))\n"
    )
    for solver in ("glpk", "highs"):
        answer = subprocess.run([sys.executable, "-c", program, solver], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.splitlines()[-1] == "[]"
        assert "a valid plan for" in answer.stdout


def parsed(command: Any, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_check_command_finds_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert plan_command.run(parsed(plan_command, str(PROBLEM_FILE), "--out", str(out), "--theta", "5")) == 0
    assert "llmpq: 0." in capsys.readouterr().out
    assert check_command.run(parsed(check_command, str(PROBLEM_FILE), str(out), "--theta", "5")) == 0
    assert check_command.run(parsed(check_command, str(PROBLEM_FILE), str(out))) == 1
    assert "the plan was made for another one" in capsys.readouterr().out
    document = artifacts.read(out, "plan")
    document["predicted"]["simulated_total_s"] *= 2
    artifacts.write_text(out, artifacts.dumps(document))
    assert check_command.run(parsed(check_command, str(PROBLEM_FILE), str(out), "--theta", "5")) == 1
    assert "the event simulation gives" in capsys.readouterr().out


def test_requests_beyond_the_slots_run_in_batches() -> None:
    twice = {**PROBLEM, "workload": {**PROBLEM["workload"], "requests": 4}}
    one, two = plan(PROBLEM, "llmpq"), plan(twice, "llmpq")
    assert two["predicted"]["total_s"] == pytest.approx(2 * one["predicted"]["total_s"])
    assert two["predicted"]["tokens_per_s"] == pytest.approx(one["predicted"]["tokens_per_s"])
    assert two["objective_ms"] == one["objective_ms"]


def test_a_solvers_answer_beyond_memory_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solvers keep rows within 1e-7 of their size; a plan must keep them to the byte."""
    problem = Problem.from_document(cluster_problem([1.0, 2.0], THETA))
    seen = []
    honest = search_module.solve

    def generous(model: Any, *arguments: Any, **options: Any) -> Any:
        solution = honest(model, *arguments, **options)
        seen.append(model.shrink)
        if model.shrink == 0.0 and solution.counts is not None:
            worse = np.zeros_like(solution.counts)
            worse[:, 0] = solution.counts.sum(axis=1)  # everything at 16 bit: too much
            return dataclasses.replace(solution, counts=worse)
        return solution

    monkeypatch.setattr("llmpq.plan.stage_configs.MOST_CONFIGS", 0)  # programs are solved where configurations cannot be listed
    monkeypatch.setattr(search_module, "solve", generous)
    found = search_module.search(problem, solver="highs", time_limit_s=60, gap=1e-3)
    assert found.best is not None
    candidate = build(problem, found.best.order, found.best.batches)
    assert candidate.fits(found.best.counts(problem.options), candidate.end(found.best.ends))
    assert set(seen) >= {0.0, search_module.SHRINKS[1]}
