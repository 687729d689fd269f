"""Offloading, worked out by hand on one device and judged by the independent check."""

import copy
from typing import Any

import pytest
from plan_instances import cluster_problem

from llmpq import planless
from llmpq.commands.plan import summary
from llmpq.errors import InfeasibleError
from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.plan.strategies import STRATEGIES


def table(size: int, prefill: float, decode: float) -> dict[str, Any]:
    return {"resident_bytes": size, "prefill_ms": {"2": prefill}, "decode_ms": {"2": decode}}


def one_device(memory: int, host: dict[str, float] | None) -> dict[str, Any]:
    """6 layers, one micro-batch of 2 requests, 4 tokens each; 16 bit takes 100 bytes and 4 ms, 4 bit 40 bytes and 6 ms per decode."""
    device = {
        "name": "card",
        "memory_bytes": memory,
        "options": {"16": table(100, 10.0, 4.0), "4": table(40, 30.0, 6.0)},
        "embedding": {"16": table(20, 1.0, 1.0)},
        "head": {"16": table(30, 2.0, 2.0)},
        "workspace_bytes": {"prefill": {"2": 10}, "decode": {"2": 5}},
        **({} if host is None else {"host": host}),
    }
    return {
        "name": "one",
        "source": "computed",
        "model": {"layers": 6},
        "workload": {"requests": 2, "slots": 2, "prompt_tokens": 8, "new_tokens": 4},
        "schedule": "barrier",
        "overlapped_sends": True,
        "options": ["16", "4"],
        "end_options": ["16"],
        "micro_batches": {"prefill": [2], "decode": [2]},
        "kv_bytes_per_layer": 5,
        "activation_bytes_per_token": 1,
        "token_bytes": 1,
        "devices": [device],
        "links": [],
        "omega": {"16": [0.0] * 6, "4": [0.5] * 6},
        "objective": {"quality_budget": 0.4},
    }


def test_a_pass_takes_the_longer_of_computing_and_streaming() -> None:
    """420 bytes less 20 + 30 + 10 for ends and workspace, 6 × 5 for the cache and 200 for two buffers leave 130: one layer stays, 5 stream.

    5 × 100 bytes at 10 bytes/ms are 50 ms. Prefill computes 1 + 6 · 10 + 2 = 63 ms, which hides them; a decode pass computes
    1 + 6 · 4 + 2 = 27 ms and takes 50. Batch: 63 + 2 · 50 + 50 = 213 ms.
    """
    problem = one_device(420, {"memory_bytes": 1000, "bytes_per_ms": 10.0})
    body = plan(problem, "offload")
    block = body["offload"]
    assert body["status"] == "priced"
    assert block["stages"] == [{"device": "card", "layers": 6, "streamed": 5}]
    assert (block["option"], block["objective_ms"], block["omega_sum"]) == ("16", pytest.approx(213.0), 0.0)
    assert check(problem, body) == []
    with pytest.raises(InfeasibleError):  # half of the layers at 4 bit would have to do 1.5 times the damage allowed
        plan(problem, "llmpq")


def test_where_offloading_wins_the_summary_says_so_first() -> None:
    """A device that fits 4 bit alone, a host link so fast that 16 bit streams for nothing, and a theta that makes damage dear."""
    problem = {**one_device(420, {"memory_bytes": 1000, "bytes_per_ms": 1e6}), "objective": {"theta_ms": 1000.0}}
    body = plan(problem, "llmpq")
    assert body["offload"]["wins"]
    assert body["offload"]["objective_ms"] < body["objective_ms"]
    assert check(problem, body) == []
    assert summary(body).startswith("offloading would be better than every plan without it: option 16 on card, 5 of 6 layers stream")
    slow = {**problem, "devices": [{**problem["devices"][0], "host": {"memory_bytes": 1000, "bytes_per_ms": 0.1}}]}
    body = plan(slow, "llmpq")
    assert not body["offload"]["wins"]
    assert summary(body).startswith("llmpq: ")


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (None, "no device of this problem has host memory"),
        ({"memory_bytes": 1, "bytes_per_ms": 10.0}, "offload: KV cache, ends, workspace and two layers do not fit"),
    ],
)
def test_offloading_that_cannot_be_says_why(host: dict[str, float] | None, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        plan(one_device(260 if host else 420, host), "offload")


def test_the_check_finds_every_false_figure_of_the_block() -> None:
    problem = one_device(420, {"memory_bytes": 1000, "bytes_per_ms": 10.0})
    good = plan(problem, "offload")

    def faults(**changes: Any) -> str:
        broken = copy.deepcopy(good)
        broken["offload"].update(changes)
        return " | ".join(check(problem, broken))

    assert "offload.objective_ms is 1.0, recomputed 213" in faults(objective_ms=1.0)
    assert "offload.decode_s is 9" in faults(decode_s=9)
    assert "offload places 5 of 6 layers" in faults(stages=[{"device": "card", "layers": 5, "streamed": 5}])
    assert "offload: device 'card' needs 490 bytes and has 420" in faults(stages=[{"device": "card", "layers": 6, "streamed": 4}])
    assert "offload is on device 'disk'" in faults(stages=[{"device": "disk", "layers": 6, "streamed": 4}])
    assert "offload.omega_sum is 3" in faults(omega_sum=3)
    tiny = {**problem, "devices": [{**problem["devices"][0], "host": {"memory_bytes": 400, "bytes_per_ms": 10.0}}]}
    assert "do not fit in the host memory of device 'card'" in " | ".join(check(tiny, good))


@pytest.mark.parametrize("overlapped", [True, False])
def test_a_pipeline_that_offloads_passes_the_check(overlapped: bool) -> None:
    problem = {**cluster_problem([1.0, 2.0, 1.0], {"theta_ms": 100.0}), "overlapped_sends": overlapped}
    for device in problem["devices"]:
        device.update(memory_bytes=int(0.8 * device["memory_bytes"]), host={"memory_bytes": 10**9, "bytes_per_ms": 4e6})
    body = plan(problem, "offload")
    assert check(problem, body) == []
    assert sum(stage["streamed"] for stage in body["offload"]["stages"]) > 0


def test_with_everything_in_memory_offloading_is_a_plain_plan() -> None:
    """Nothing streams: the price is that of the best plan with the same cut, as the planner prices it."""
    problem = one_device(10_000, {"memory_bytes": 1000, "bytes_per_ms": 10.0})
    block = plan(problem, "offload")["offload"]
    assert [stage["streamed"] for stage in block["stages"]] == [0]
    assert block["objective_ms"] == pytest.approx(plan(problem, "uniform")["objective_ms"])


def test_the_registry_knows_offload_as_no_plan() -> None:
    problem = one_device(420, {"memory_bytes": 1000, "bytes_per_ms": 10.0})
    found = STRATEGIES["offload"].load()(Problem.from_document(problem), [])
    assert found is None  # no candidates, nothing to price
    assert planless.reason(plan(problem, "offload")) is not None
