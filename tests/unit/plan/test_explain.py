"""explain: every gain is that of a problem planned again, slack buys nothing, and the words say what the figures say."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plan_instances import best_of_seed, cluster_problem, random_problem

from llmpq import artifacts
from llmpq.commands import explain as command
from llmpq.errors import InfeasibleError, LlmpqError
from llmpq.plan.changes import GIB, changes
from llmpq.plan.explain import explain
from llmpq.plan.known import assignment_of
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.plan.result import plan_body
from llmpq.plan.strategies import BASELINES

PROBLEM_FILE = Path(__file__).parents[2] / "lp" / "problem.json"
PROBLEM = json.loads(PROBLEM_FILE.read_text())
HEADER = {"schema": "llmpq.problem", "version": 1}
EXACT = {"solver": "highs", "gap": 0.0}


def explained(problem: dict[str, Any], strategy: str = "llmpq") -> dict[str, Any]:
    body = explain({**HEADER, **problem}, plan(problem, strategy, **EXACT), **EXACT)
    artifacts.check({"schema": "llmpq.explain", "version": 1, **body}, "explain")
    return body


@pytest.mark.parametrize("seed", range(800, 808))
def test_gains_are_those_of_problems_planned_again(seed: int) -> None:
    problem = random_problem(seed)
    if best_of_seed(seed) is None:
        with pytest.raises(InfeasibleError) as caught:
            plan(problem, "llmpq", **EXACT)
        body = explain({**HEADER, **problem}, None, **EXACT)
        assert (body["feasible"], body["message"], body["details"]) == (False, str(caught.value), caught.value.details)
        return
    now = plan(problem, "llmpq", **EXACT)["objective_ms"]
    body = explained(problem)
    assert body["best_objective_ms"] == pytest.approx(now, rel=1e-9)
    checked = Problem.from_document(problem)
    links = [tuple(item["where"].split(" → ")) for item in body["changes"] if "→" in item["where"]]
    again = {(change.kind, change.where): change for change in changes(checked, links)}
    assert len(again) == len(body["changes"])
    for entry in body["changes"]:
        other = plan(again[entry["kind"], entry["where"]].changed(checked.document), "llmpq", **EXACT)["objective_ms"]
        assert entry["objective_ms"] == pytest.approx(other, rel=1e-9)
        assert entry["gain_ms"] == pytest.approx(max(now - other, 0.0), rel=1e-7, abs=1e-7 * now)
        assert entry["gain_ms"] <= entry["gain_at_most_ms"] + 1e-9


def test_what_is_not_short_buys_nothing_and_what_binds_does() -> None:
    """One device holds everything at the gentlest option: more memory is for nothing. A tight one gains, and says so."""
    problem = cluster_problem([1.0, 2.0], {"theta_ms": 1000.0})
    roomy = copy.deepcopy(problem)
    for device in roomy["devices"]:
        device["memory_bytes"] *= 10
    tight = copy.deepcopy(problem)
    for device in tight["devices"]:
        device["memory_bytes"] = int(0.72 * device["memory_bytes"])
    gains = {}
    for name, each in (("roomy", roomy), ("tight", tight)):
        body = explained(each)
        gains[name] = [entry["gain_ms"] for entry in body["changes"] if entry["kind"] == "memory"]
        for entry in body["changes"]:
            assert ("would buy nothing" in entry["sentence"]) == (entry["gain_ms"] <= 1e-7 * body["best_objective_ms"])
    assert gains["roomy"] == [0.0, 0.0]
    assert max(gains["tight"]) > 1.0
    stages = explained(tight, "adabits")["stages"]
    assert any("memory" in stage["binds"] for stage in stages)
    assert max(stage["prefill_share"] for stage in stages) == max(stage["decode_share"] for stage in stages) == 1.0


def test_a_large_device_gains_a_gib_a_small_one_a_tenth() -> None:
    problem = copy.deepcopy(PROBLEM)
    problem["devices"][0]["memory_bytes"] = 16 * GIB
    first, second = [change for change in changes(Problem.from_document(problem), []) if change.kind == "memory"][:2]
    assert first.amount == "1 GiB more memory"
    assert first.changed(problem)["devices"][0]["memory_bytes"] == 17 * GIB
    size = problem["devices"][1]["memory_bytes"]
    assert second.changed(problem)["devices"][1]["memory_bytes"] == size + round(size / 10)
    assert problem["devices"][0]["memory_bytes"] == 16 * GIB


def test_baselines_lose_by_what_the_parts_add_up_to() -> None:
    problem = cluster_problem([1.0, 2.5], {"theta_ms": 300.0}, seed=7)
    body = explained(problem)
    assert [entry["strategy"] for entry in body["baselines"]] == list(BASELINES)
    for entry in body["baselines"]:
        own = plan(problem, entry["strategy"])
        assert entry["objective_ms"] == own["objective_ms"]
        parts = entry["lost_in_prefill_ms"] + entry["lost_in_decode_ms"] + entry["lost_by_damage_ms"]
        assert entry["lost_ms"] == pytest.approx(parts, rel=1e-9, abs=1e-9)
        assert entry["sentence"] in body["sentences"]
        if entry["verdict"] == "loses" and entry[f"lost_in_{entry['phase']}_ms"] > 0:
            assert f"waits for stage {entry['stage']} on {entry['device']}" in entry["sentence"]


def test_baselines_that_break_the_budget_or_do_not_fit_say_that() -> None:
    verdicts = {entry["strategy"]: entry for entry in explained(tight_budget())["baselines"]}
    assert verdicts["uniform"]["verdict"] == "breaks_budget"
    assert "breaks the quality budget: sum of omega" in verdicts["uniform"]["sentence"]
    problem = copy.deepcopy(PROBLEM)
    for device, size in zip(problem["devices"], (440, 200, 200), strict=True):
        device["memory_bytes"] = size
    verdicts = {entry["strategy"]: entry for entry in explained({**problem, "objective": {"theta_ms": 1.0}})["baselines"]}
    assert verdicts["uniform"]["verdict"] == "does_not_fit"
    assert "lacks" in verdicts["uniform"]["sentence"]


def tight_budget() -> dict[str, Any]:
    problem = cluster_problem([1.0, 2.0, 1.0], {"quality_budget": 0.3})
    for device in problem["devices"]:
        device["memory_bytes"] = int(0.66 * device["memory_bytes"])
    return problem


def test_a_baselines_plan_is_explained_against_the_best_one() -> None:
    problem = cluster_problem([1.0, 2.0], {"theta_ms": 1000.0})
    body = explained(problem, "uniform")
    assert body["strategy"] == "uniform"
    assert body["best_objective_ms"] < body["objective_ms"]
    assert any("A better plan exists" in sentence for sentence in body["sentences"])


@pytest.mark.parametrize("seed", range(820, 835))
def test_a_plan_read_back_is_the_decision_it_was(seed: int) -> None:
    problem = random_problem(seed)
    try:
        body = plan(problem, "adabits")
    except InfeasibleError:
        return
    checked = Problem.from_document(problem)
    again = plan_body(checked, assignment_of(checked, body), "adabits")
    assert again == {key: value for key, value in body.items() if key != "certificate"}


def test_a_plan_for_another_problem_is_refused() -> None:
    body = plan(PROBLEM, "llmpq")
    with pytest.raises(LlmpqError, match="made for another problem"):
        explain({**HEADER, **PROBLEM, "name": "other"}, body)
    renamed = json.loads(json.dumps(body).replace('"fast"', '"swift"'))
    with pytest.raises(LlmpqError, match="device 'swift' is not in the problem"):
        explain({**HEADER, **PROBLEM}, renamed)


def test_the_command_prints_and_writes_without_heavy_imports(tmp_path: Path) -> None:
    plan_file, out = tmp_path / "plan.json", tmp_path / "explain.json"
    program = (
        "import sys\n"
        "from llmpq.cli import main\n"
        f"assert main(['plan', {str(PROBLEM_FILE)!r}, '--out', {str(plan_file)!r}]) == 0\n"
        f"assert main(['explain', {str(PROBLEM_FILE)!r}, {str(plan_file)!r}, '--json', {str(out)!r}]) == 0\n"
        f"assert main(['pareto', {str(PROBLEM_FILE)!r}, '--out', {str(tmp_path / 'pareto.json')!r}, '--points', '3']) == 0\n"
        "print(sorted({'torch', 'pandas', 'snakemake', 'mlflow', 'transformers', 'omegaconf', 'hydra'} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"
    document = artifacts.read(out, "explain")
    assert all(sentence in answer.stdout for sentence in document["sentences"])
    assert command.HELP
