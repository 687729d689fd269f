"""The front against brute force: the fastest plan of every budget, no dominated point, a certificate for each."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from plan_instances import cluster_problem, every_decision, random_problem

from llmpq import artifacts
from llmpq.errors import ConfigError, InfeasibleError
from llmpq.plan.check import check
from llmpq.plan.pareto import pareto, scaled, with_budget
from llmpq.planning import write_front

EXACT = {"solver": "highs", "gap": 0.0}


def checked_front(problem: dict[str, Any], front: dict[str, Any]) -> list[dict[str, Any]]:
    """The points, each judged as a plan of its own problem."""
    points = front["points"]
    for point in points:
        own = with_budget(scaled(problem, front["memory_factor"]), point["quality_budget"])
        own = {"schema": "llmpq.problem", "version": 1, **own}
        assert check(own, point["plan"]) == []
        assert point["plan"]["certificate"]["status"] == "optimal"
        assert point["omega_sum"] <= point["quality_budget"] * (1 + 1e-9) + 1e-9
    for gentle, fast in itertools.pairwise(points):
        assert gentle["omega_sum"] < fast["omega_sum"]
        assert gentle["batch_ms"] > fast["batch_ms"]
    return points


@pytest.mark.parametrize("seed", range(900, 920))
def test_every_point_is_the_best_of_its_budget_and_the_ends_are_those_of_brute_force(seed: int) -> None:
    problem = random_problem(seed)
    decisions = list(every_decision(problem))
    if not decisions:
        with pytest.raises(InfeasibleError, match="no plan fits in memory"):
            pareto(problem, points=4, **EXACT)
        return
    body = pareto(problem, points=4, **EXACT)
    artifacts.check({"schema": "llmpq.pareto", "version": 1, **body}, "pareto")
    points = checked_front(problem, body["fronts"][0])
    assert len(points) <= 4
    for point in points:
        best = min(item.total_ms for item in decisions if item.omega <= point["quality_budget"] + 1e-9)
        assert point["batch_ms"] == pytest.approx(best, rel=1e-9)
    assert points[-1]["batch_ms"] == pytest.approx(min(item.total_ms for item in decisions), rel=1e-9)
    assert points[0]["quality_budget"] >= min(item.omega for item in decisions) - 1e-9


def test_more_memory_moves_the_front_outwards_and_too_little_says_why() -> None:
    problem = cluster_problem([1.0, 2.0], {"theta_ms": 1.0})
    body = pareto(problem, points=3, memory_factors=(0.3, 0.75, 1.5), solver="highs", gap=1e-3)
    none, tight, roomy = body["fronts"]
    assert none["points"] == []
    assert "no plan fits in memory" in none["infeasible"]
    for point in checked_front(problem, tight):
        rivals = [other for other in roomy["points"] if other["omega_sum"] <= point["omega_sum"] * (1 + 1e-9) + 1e-12]
        assert rivals
    assert min(point["batch_ms"] for point in roomy["points"]) <= min(point["batch_ms"] for point in tight["points"]) * (1 + 2e-3)
    assert roomy["points"][0]["omega_sum"] <= tight["points"][0]["omega_sum"]


def test_the_file_is_a_valid_artifact(tmp_path: Path) -> None:
    problem = cluster_problem([1.0], {"theta_ms": 1.0})
    artifacts.write(tmp_path / "problem.json", "problem", problem, source="computed")
    options = {"points": 3, "memory_factors": [1.0], "time_limit": 60.0, "seed": 0, "experiment": "solo"}
    document = write_front(tmp_path / "problem.json", tmp_path / "pareto.json", solver="highs", gap=1e-3, **options)
    assert artifacts.read(tmp_path / "pareto.json", "pareto") == document
    assert document["experiment"] == "solo"


@pytest.mark.parametrize("wrong", [{"points": 1}, {"memory_factors": ()}, {"memory_factors": (0.0,)}])
def test_senseless_requests_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a front needs at least 2 points and memory factors above 0"):
        pareto(cluster_problem([1.0], {"theta_ms": 1.0}), **wrong)
