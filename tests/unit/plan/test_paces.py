"""The search by windows of paces, forced: its bound holds and its plan is within the gap of brute force, whenever it ends."""

import pytest
from plan_instances import best_of_seed, random_problem

from llmpq.errors import InfeasibleError
from llmpq.plan import search
from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.simulate.barrier import with_simulated_total

GAP = 0.01


@pytest.mark.parametrize("seed", range(600, 620))
def test_the_bound_by_paces_is_below_the_optimum_of_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEW", 0)
    problem, expected = random_problem(seed), best_of_seed(seed)
    if expected is None:
        with pytest.raises(InfeasibleError):
            plan(problem, solver="highs", gap=GAP, time_limit=3.0, paces=True)
        return
    found = plan(problem, solver="highs", gap=GAP, time_limit=3.0, paces=True)
    assert check(problem, with_simulated_total(problem, found)) == []
    assert found["certificate"]["bound"] <= expected.objective_ms * (1 + 1e-9)
    assert found["objective_ms"] >= expected.objective_ms * (1 - 1e-9)
    if found["certificate"]["status"] == "optimal":
        assert found["objective_ms"] <= expected.objective_ms * (1 + GAP + 1e-6)
