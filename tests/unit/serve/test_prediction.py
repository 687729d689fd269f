"""A run is compared with what prices it: the plan's figures where they hold, else a simulation of the very requests it served."""

import json
from pathlib import Path
from typing import Any

import pytest
import serve_cases
from serve_cases import Case, requests

from llmpq import artifacts
from llmpq.serve.job import Settings
from llmpq.serve.prediction import predict
from llmpq.simulate.predict import simulate_workload
from llmpq.simulate.run import Request

LENGTHS, LIMITS = [20, 9, 17, 12, 3, 20, 14], [6, 4, 2, 3, 1, 6, 5]


def part(prefill_ms: float, decode_ms: float) -> dict[str, Any]:
    """Tables by size and length: a call costs so much for every row and token (prefill) or row and attended position (decode)."""
    sizes = (1, 2, 4)
    return {
        "resident_bytes": 1,
        "prefill_ms": {str(size): size * 20 * prefill_ms for size in sizes},
        "decode_ms": {str(size): size * 23 * decode_ms for size in sizes},
        "prefill_by_length_ms": {str(size): [size * prefill_ms, size * 20 * prefill_ms] for size in sizes},
        "decode_by_length_ms": {str(size): [size * decode_ms, size * 26 * decode_ms] for size in sizes},
    }


def problem(case: Case, requests_count: int, slots: int) -> Path:
    """A problem for the case's plan (two stages, every layer at option 32), written; the plan is made out to be for it."""
    ends = {"32": part(0.01, 0.001)}
    device = {
        "memory_bytes": 2**33, "options": {"32": part(0.02, 0.002)}, "embedding": ends, "head": ends,
        "workspace_bytes": {phase: {str(size): 1 for size in (1, 2, 4)} for phase in ("prefill", "decode")},
    }  # fmt: skip
    body = {
        "name": "test", "source": "computed", "model": {"layers": serve_cases.LAYERS}, "schedule": "barrier", "overlapped_sends": True,
        "workload": {"requests": requests_count, "slots": slots, "prompt_tokens": 20, "new_tokens": 6}, "options": ["32"],
        "end_options": ["32"], "lengths": {"prefill": [1, 20], "decode": [1, 26]}, "kv_bytes_per_layer": 1,
        "activation_bytes_per_token": 256, "token_bytes": 8, "devices": [{"name": name, **device} for name in ("d0", "d1")],
        "links": [{"from": a, "to": b, "alpha_ms": 0.05, "bytes_per_ms": 1e5} for a, b in (("d0", "d1"), ("d1", "d0"))],
        "omega": {"32": [0] * serve_cases.LAYERS}, "objective": {"theta_ms": 1},
    }  # fmt: skip
    path = case.directory / "problem.json"
    artifacts.write(path, "problem", body, source="computed")
    case.body["problem_sha256"] = artifacts.body_digest(artifacts.read(path, "problem"))
    return path


@pytest.mark.parametrize("schedule", ["barrier", "continuous"])
def test_unlike_requests_are_compared_with_their_own_simulation(tmp_path: Path, tiny_checkpoint: Path, schedule: str) -> None:
    rows = requests(LENGTHS, LIMITS)
    case = Case(tmp_path, tiny_checkpoint, rows, [2, 4], (2, 2), slots=4, schedule=schedule)
    where = problem(case, 8, 4)
    plan = serve_cases.write_plan(tmp_path / "plan.json", case.body)
    document = serve_cases.serve(plan, where, case.workload, case.cluster, tiny_checkpoint, None, tmp_path, case.settings, say=print)
    expected = simulate_workload(
        artifacts.read(where, "problem"),
        artifacts.read(plan, "plan"),
        [Request(length, limit, limit) for length, limit in zip(LENGTHS, LIMITS, strict=True)],
        schedule=schedule,
        slots=4,
        record=True,
    )
    predicted = document["throughput"]["predicted"]
    assert predicted["by"] == "simulation"
    assert predicted["total_s"] == pytest.approx(expected.total_ms / 1000)
    assert predicted["tokens_per_s"] == pytest.approx(sum(LIMITS) / predicted["total_s"])
    total = document["throughput"]["measured"]["total_s"]
    for rank, stage in enumerate(document["stages"]):
        assert stage["bubble_s"] == pytest.approx(total - stage["busy_s"])
        assert stage["predicted"]["busy_s"] == pytest.approx((expected.stages["prefill"][rank] + expected.stages["decode"][rank]) / 1000)
        assert stage["predicted"]["utilisation"] < 1
    calls = sum(event.resource == "stage 0" for event in expected.events)
    into_0, into_1 = (stage["link"] for stage in document["stages"])
    assert into_0["tokens"]["messages"] == into_1["prefill"]["messages"] + into_1["decode"]["messages"] == calls
    assert into_1["decode"]["predicted_ms"] == pytest.approx(0.05 + 2 * 256 / 1e5)
    timelines = [json.loads((tmp_path / name).read_text())["traceEvents"] for name in ("timeline.json", "simulated.json")]
    both = [[event for event in events if event["ph"] == "X"] for events in timelines]
    assert [{event["pid"] for event in events} for events in both] == [{0, 1}, {2, 3}]
    shapes = [
        [(event["cat"], event["args"]["micro_batch"], event["args"]["rows"]) for event in events if event["pid"] in (0, 2)]
        for events in both
    ]
    assert shapes[0] == shapes[1]  # the simulation made the calls that the run made
    for events in timelines:
        opened = [event["id"] for event in events if event["ph"] == "b"]
        assert sorted(opened) == sorted(event["id"] for event in events if event["ph"] == "e")
        assert len(set(opened)) == len(opened) == 2 * calls


def predicted(rows: list[dict[str, Any]], tokens: list[int], *, known: bool = True, share: float | None = 1.0, **changes: Any) -> Any:
    """For a plan of four requests of 20 and 6 tokens whose figures are 1 s and 2 s."""
    throughput = {"prefill_s": 1.0, "decode_s": 2.0, "total_s": 3.0, "tokens_per_s": 8.0, "simulated_total_s": 3.0}
    stage = {"device": "d0", "options": ["32"], "embedding_option": "32", "head_option": "32"}
    plan = {"schedule": "barrier", "stages": [stage], "micro_batch": {"prefill": 2, "decode": 2}, "predicted": throughput}
    tables = {"options": {"32": part(0.02, 0.002)}, "embedding": {"32": part(0.01, 0.001)}, "head": {"32": part(0.01, 0.001)}}
    workload = {"requests": 4, "slots": 4, "prompt_tokens": 20, "new_tokens": 6}
    lengths = {"lengths": {"prefill": [1, 20], "decode": [1, 26]}, "activation_bytes_per_token": 256, "token_bytes": 8}
    document = {"workload": workload, "overlapped_sends": True, **lengths, "devices": [{"name": "d0", **tables}], "links": []}
    options = Settings(**{"slots": 4, "schedule": "barrier", **changes})
    return predict(plan, document if known else None, rows, tokens, options, share).throughput


def test_the_plans_own_requests_are_compared_with_its_figures() -> None:
    assert predicted(requests([20] * 4, 6), [6] * 4) == {
        "tokens_per_s": 8.0,
        "prefill_s": 1.0,
        "decode_s": 2.0,
        "total_s": 3.0,
        "by": "formula",
    }


@pytest.mark.parametrize(
    ("lengths", "tokens", "changes"),
    [
        ([20, 20, 20, 19], [6, 6, 6, 6], {}),
        ([20] * 4, [6, 6, 6, 5], {}),  # one stopped early
        ([20] * 4, [6] * 4, {"schedule": "continuous"}),
        ([20] * 4, [6] * 4, {"slots": 2}),
        ([20] * 3, [6] * 3, {}),  # the rest of an interrupted run
    ],
)
def test_all_else_is_simulated_with_the_tokens_made(lengths: list[int], tokens: list[int], changes: dict[str, Any]) -> None:
    found = predicted(requests(lengths, 6), tokens, **changes)
    assert found["by"] == "simulation"
    assert found["tokens_per_s"] == pytest.approx(sum(tokens) / found["total_s"])
    assert found["total_s"] != 3.0
    assert found["total_s"] == pytest.approx(found["prefill_s"] + found["decode_s"])


def test_without_the_problem_there_is_the_plans_pace_and_for_another_schedule_nothing() -> None:
    rows = requests([20] * 2, 6)
    half = {"tokens_per_s": 8.0, "prefill_s": 0.5, "decode_s": 1.0, "total_s": 1.5, "by": "formula"}
    assert predicted(rows, [6, 6], known=False, share=0.5) == half
    assert predicted(rows, [6, 6], known=False, share=None) == half
    assert set(predicted(rows, [6, 6], known=False, schedule="continuous").values()) == {None}
