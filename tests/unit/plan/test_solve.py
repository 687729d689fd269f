"""One program at a time: both solvers, both formulations, time limits, and what a solver's words are taken to prove."""

import json
import math
from pathlib import Path

import pytest
from plan_instances import cluster_problem, random_problem

from llmpq.plan import solve as solve_module
from llmpq.plan.assign import assign, assign_stage
from llmpq.plan.candidate import Assignment, Candidate, build, objective_ms
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.milp import build_model
from llmpq.plan.problem import Problem
from llmpq.plan.search import compared_candidates
from llmpq.plan.solve import SolverError, solve
from llmpq.plan.textbook import build_textbook_model

GOLDEN = Problem.from_document(json.loads((Path(__file__).parents[2] / "lp" / "problem.json").read_text()))


def golden(*order: int) -> Candidate:
    return build(GOLDEN, order, MicroBatches.choose(GOLDEN.slots, 1, 1))


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_two_stages_by_hand(solver: str) -> None:
    """The slow device first: 400 bytes left make room for one layer at 16 bit; the fast one has 690 for three."""
    found = solve(build_model(GOLDEN, golden(1, 0)), solver, time_limit_s=30, gap=0.0)
    assert found.status == "optimal"
    assert found.counts is not None
    assert found.counts.tolist() == [[1, 0], [3, 0]]
    times = golden(1, 0).makespan(found.counts, found.end)
    assert found.objective == pytest.approx(times.total_ms)
    # Prefill: 2·(1·10 + 1) + .25 on the slow stage, 3·10 + 2 + .25 on the fast one, send .5 + 8·16/64; the second chunk 32.25 later.
    assert times.prefill_ms == pytest.approx(22.25 + 32.25 + 2.5 + 32.25)


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_what_does_not_fit_is_infeasible(solver: str) -> None:
    found = solve(build_model(GOLDEN, golden(2)), solver, time_limit_s=30, gap=0.0)
    assert (found.status, found.counts, found.bound) == ("infeasible", None, math.inf)
    cut_off = solve(build_model(GOLDEN, golden(1, 0), cutoff_ms=1.0), solver, time_limit_s=30, gap=0.0)
    assert cut_off.status == "infeasible"


@pytest.mark.parametrize("solver", ["glpk", "highs"])
@pytest.mark.parametrize("seed", range(600, 606))
def test_the_textbook_form_has_the_same_optimum(seed: int, solver: str) -> None:
    problem = Problem.from_document(random_problem(seed))
    for candidate in compared_candidates(problem)[::7]:
        if not (candidate.capacity > 0).all():
            continue
        counts = solve(build_model(problem, candidate), solver, time_limit_s=30, gap=0.0)
        textbook = solve(build_textbook_model(problem, candidate), solver, time_limit_s=30, gap=0.0)
        assert counts.status == textbook.status
        if counts.objective is not None:
            assert counts.objective == pytest.approx(textbook.objective, rel=1e-6)


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_a_time_limit_leaves_a_bound_below_the_optimum(solver: str) -> None:
    """A program that neither solver proves in 20 s; 7382.16 is the best plan that HiGHS finds in that time."""
    speeds = [1.0, 1.1, 1.3, 1.2, 1.4, 1.5, 1.6, 1.7]
    problem = Problem.from_document(cluster_problem(speeds, {"theta_ms": 20000.0}, layers=96))
    candidate = build(problem, (3, 1, 0, 2, 4, 5, 6, 7), MicroBatches.choose(problem.slots, 3, 4))
    hurried = solve(build_model(problem, candidate), solver, time_limit_s=1, gap=0.0)
    assert hurried.status in ("feasible", "unknown")
    assert hurried.seconds < 15
    assert hurried.bound <= 7382.16
    assert hurried.objective is None or hurried.objective > 7200


def test_glpks_words_prove_what_they_say() -> None:
    judge = solve_module._judge_glpk
    log = "+   90: mip =   2.000000000e+02 >=   1.900000000e+02   5.0% (10; 3)\nTIME LIMIT EXCEEDED; SEARCH TERMINATED\n"
    status, objective, bound = judge(log, "INTEGER NON-OPTIMAL", 200.0, 0.0)
    assert (status, objective) == ("feasible", 200.0)
    assert bound == pytest.approx(190.0, rel=1e-6)
    assert judge(log, "INTEGER NON-OPTIMAL", 200.0, 0.06)[0] == "optimal"
    assert judge("+   90: mip =     not found yet >=   1.9e+02        (10; 3)\n", "INTEGER UNDEFINED", None, 0.0) == (
        "unknown",
        None,
        190.0,
    )
    assert judge("PROBLEM HAS NO PRIMAL FEASIBLE SOLUTION\n", "INTEGER UNDEFINED", None, 0.0) == ("infeasible", None, math.inf)
    assert judge("SOMETHING ELSE\n", "INTEGER UNDEFINED", None, 0.0) == ("unknown", None, -math.inf)
    done = "+ 5: mip =   2.000000000e+02 >=     tree is empty   0.0% (0; 9)\nINTEGER OPTIMAL SOLUTION FOUND\n"
    status, objective, bound = judge(done, "INTEGER OPTIMAL", 200.0, 0.0)
    assert status == "optimal"
    assert 199.99 < bound < 200.0  # GLPK drops branches within 1e-7 of the incumbent


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(SolverError, match="unknown solver 'cplex'; solvers are glpk, highs"):
        solve(build_model(GOLDEN, golden(0)), "cplex", time_limit_s=1, gap=0.0)


def test_options_go_to_the_layers_they_harm_least() -> None:
    """Two layers at option 0, one at option 1; the second layer suffers least from option 1."""
    assert assign_stage([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]], [2, 1]) == [0, 1, 0]
    # Greedy by layer would give option 1 to the first layer; the sum is less the other way round.
    assert assign_stage([[1.0, 0.0, 9.0], [5.0, 0.5, 9.0]], [1, 1, 0]) == [0, 1]


def test_assigning_the_counts_keeps_the_programs_objective() -> None:
    problem = Problem.from_document(cluster_problem([1.0, 2.0], {"theta_ms": 3000.0}))
    candidate = build(problem, (1, 0), MicroBatches.choose(problem.slots, 4, 16))
    found = solve(build_model(problem, candidate), "highs", time_limit_s=30, gap=0.0)
    assert found.counts is not None
    assignment = Assignment(candidate.order, candidate.batches, assign(problem, found.counts), candidate.ends[found.end])
    assert objective_ms(problem, candidate, assignment) == pytest.approx(found.objective, rel=1e-7)
