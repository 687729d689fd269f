"""The makespan that ``check`` recomputes equals the event simulation on random plans: any cut, options, ends, order and micro-batches."""

import itertools
import random
from typing import Any

import pytest
from plan_instances import ENDS, PHASES, random_problem

from llmpq.plan.candidate import Assignment
from llmpq.plan.check import check
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import Problem
from llmpq.plan.result import plan_body
from llmpq.simulate.predict import simulate

PLANS = 600


def random_plan(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A problem with ample memory and budget, and a random plan for it with micro-batches of equal size.

    The way back carries token ids only: where it would take longer than the slowest stage or link, the closed form is a lower bound,
    so links are made quick to begin.
    """
    problem, draw = random_problem(seed), random.Random(seed)
    for device in problem["devices"]:
        device["memory_bytes"] = 10**9
        device.pop("uses", None)
        device["overhead_ms"] = {phase: draw.uniform(0.1, 2.0) for phase in PHASES}
    for link in problem["links"]:
        link.update(alpha_ms=draw.uniform(0.0, 0.02), bytes_per_ms=draw.choice([50.0, 1000.0]))
    problem["objective"], problem["micro_batches"] = {"theta_ms": 5.0}, {}
    checked = Problem.from_document(problem)
    names = draw.sample(range(len(checked.devices)), draw.randint(1, min(len(checked.devices), checked.layers)))
    cuts = [0, *sorted(draw.sample(range(1, checked.layers), len(names) - 1)), checked.layers]
    stages = tuple(
        tuple(draw.choice(sorted(checked.devices[j].options)) for _ in range(b - a))
        for j, (a, b) in zip(names, itertools.pairwise(cuts), strict=True)
    )
    eta = draw.choice([size for size in range(1, checked.slots + 1) if checked.slots % size == 0])
    xi = draw.choice([size for size in range(1, eta + 1) if eta % size == 0])
    first, last = checked.devices[names[0]], checked.devices[names[-1]]
    ends = draw.choice(sorted(first.embedding)), draw.choice(sorted(last.head))
    batches = MicroBatches.choose(checked.slots, xi, eta)
    return problem, plan_body(checked, Assignment(tuple(names), batches, stages, ends), "random")


def with_certificate(body: dict[str, Any]) -> dict[str, Any]:
    found = {"enumerated": 1, "pruned": 0, "solved": 0}
    certificate = {"objective": body["objective_ms"], "bound": None, "gap": None, "solver": "none", "solver_version": "none"}
    return {**body, "certificate": {**certificate, "status": "heuristic", "seconds": 0.0, "candidates": found, "seed": 0}}


@pytest.mark.parametrize("block", range(6))
def test_the_makespan_is_the_simulations(block: int) -> None:
    kinds = set()
    for seed in range(block * PLANS // 6, (block + 1) * PLANS // 6):
        problem, body = random_plan(seed)
        simulated = simulate(problem, body)
        batches = problem["workload"]["requests"] // problem["workload"]["slots"]
        assert body["predicted"]["prefill_s"] == pytest.approx(simulated.prefill_ms * batches / 1000, rel=1e-9)
        assert body["predicted"]["decode_s"] == pytest.approx(simulated.decode_ms * batches / 1000, rel=1e-9)
        assert check(problem, with_certificate(body)) == []
        slower = {**body["predicted"], "decode_s": body["predicted"]["decode_s"] * (1 + 1e-6) + 1e-9}
        assert any("predicted.decode_s" in fault for fault in check(problem, with_certificate({**body, "predicted": slower})))
        ends = [stage[f"{end}_option"] for stage in body["stages"] for end in ENDS if stage[f"{end}_option"]]
        kinds |= {("stages", len(body["stages"])), ("overlapped", problem["overlapped_sends"]), ("ends", *ends)}
        kinds |= {("cache", "/kv8" in option) for stage in body["stages"] for option in stage["options"]}
    assert {("stages", count) for count in (1, 2, 3)} | {("overlapped", True), ("overlapped", False)} <= kinds
    assert {("cache", True), ("ends", "16", "8"), ("ends", "8", "16")} <= kinds
