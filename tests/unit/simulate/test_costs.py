"""What a call costs by rows and length, from problem.json, worked out by hand."""

import copy
from typing import Any

import pytest

from llmpq.simulate.costs import LengthCosts
from llmpq.simulate.predict import simulate, simulate_workload, with_simulation
from llmpq.simulate.run import Request


def part(prefill: list[list[float]], decode: list[list[float]]) -> dict[str, Any]:
    """Tables of sizes 1 and 4 at the lengths below; the plain ones are those of the longest prompt and of the mean context."""
    tables = {"prefill": prefill, "decode": decode}
    found: dict[str, Any] = {"resident_bytes": 1}
    for phase, rows in tables.items():
        found[f"{phase}_ms"] = {"1": rows[0][-1], "4": rows[1][-1]}
        found[f"{phase}_by_length_ms"] = {"1": rows[0], "4": rows[1]}
    return found


LAYER = part([[1.0, 2.0, 5.0], [2.0, 5.0, 14.0]], [[1.0, 1.5], [2.0, 4.0]])
END = part([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]], [[0.25, 0.25], [0.5, 0.5]])
DEVICE = {"memory_bytes": 100, "options": {"16": LAYER}, "embedding": {"16": END}, "head": {"16": END}, "overhead_ms": {"prefill": 0.1}}
WORKSPACE = {"workspace_bytes": {phase: {"1": 1, "4": 1} for phase in ("prefill", "decode")}}
PROBLEM: dict[str, Any] = {
    "workload": {"requests": 8, "slots": 4, "prompt_tokens": 20, "new_tokens": 3},
    "schedule": "continuous",
    "overlapped_sends": True,
    "lengths": {"prefill": [1, 10, 20], "decode": [1, 21]},
    "activation_bytes_per_token": 10,
    "token_bytes": 8,
    "devices": [{"name": name, **DEVICE, **WORKSPACE} for name in ("a", "b")],
    "links": [
        {"from": "a", "to": "b", "alpha_ms": 0.5, "bytes_per_ms": 100.0},
        {"from": "b", "to": "a", "alpha_ms": 0.25, "bytes_per_ms": 16.0},
    ],
}
STAGES = [
    {"device": "a", "options": ["16", "16"], "embedding_option": "16", "head_option": None},
    {"device": "b", "options": ["16"], "embedding_option": None, "head_option": "16"},
]
PLAN: dict[str, Any] = {"schedule": "continuous", "stages": STAGES, "micro_batch": {"prefill": 4, "decode": 4}, "predicted": {}}


def stages(phase: str, rows: int, length: int) -> tuple[float, ...]:
    return LengthCosts(PROBLEM, PLAN).route(phase, rows, length).stages


def test_at_tabulated_sizes_and_lengths_the_tables_are_summed() -> None:
    assert stages("prefill", 1, 10) == pytest.approx((2 * 2.0 + 0.5 + 0.1, 2.0 + 0.5 + 0.1))
    assert stages("decode", 4, 21) == pytest.approx((2 * 4.0 + 0.5, 4.0 + 0.5))


def test_between_them_they_are_linear_and_beyond_them_they_go_on() -> None:
    assert stages("prefill", 1, 15)[1] == pytest.approx(3.5 + 0.5 + 0.1)  # half way from 2 to 5
    assert stages("prefill", 2, 10)[1] == pytest.approx(2.0 + (5.0 - 2.0) / 3 + 0.5 + 0.5 / 3 + 0.1)
    assert stages("decode", 8, 21)[1] == pytest.approx(2 * 4.5)  # twice the rows of the largest size
    assert stages("decode", 1, 41)[1] == pytest.approx(2.0 + 0.25)  # at the slope of the last two contexts
    only_four = {**PROBLEM, "devices": [only(device, "4") for device in PROBLEM["devices"]]}
    assert LengthCosts(only_four, PLAN).route("decode", 1, 1).stages[1] == pytest.approx(2.0 + 0.5)  # no less than the smallest size


def only(device: dict[str, Any], size: str) -> dict[str, Any]:
    kept = copy.deepcopy(device)
    for option in (*kept["options"].values(), *kept["embedding"].values(), *kept["head"].values()):
        for key, table in option.items():
            if isinstance(table, dict):
                option[key] = {size: table[size]}
    return kept


def test_messages_carry_every_token_of_a_padded_prompt_and_come_back_as_ids() -> None:
    route = LengthCosts(PROBLEM, PLAN).route("prefill", 2, 5)
    assert route.links == (0.5 + 2 * 5 * 10 / 100,)
    assert route.back == 0.25 + 2 * 8 / 16
    assert LengthCosts(PROBLEM, PLAN).route("decode", 2, 5).links == (0.5 + 2 * 10 / 100,)


def test_without_tables_by_length_prompts_cost_in_proportion_and_contexts_nothing() -> None:
    plain = {key: value for key, value in PROBLEM.items() if key != "lengths"}
    costs = LengthCosts(plain, PLAN)
    assert costs.route("prefill", 1, 10).stages[1] == pytest.approx((5.0 + 0.5) / 2 + 0.1)
    assert costs.route("decode", 1, 3).stages == costs.route("decode", 1, 20).stages


def test_a_plan_of_the_continuous_schedule_is_priced_by_simulation() -> None:
    """Eight requests of 20 and 3 tokens through 4 slots: one micro-batch, so every call waits for the one before; two fillings."""
    predicted = with_simulation(PROBLEM, PLAN)["predicted"]
    costs = LengthCosts(PROBLEM, PLAN)
    prompt, first, second = costs.route("prefill", 4, 20), costs.route("decode", 4, 21), costs.route("decode", 4, 22)
    turns = [sum(call.stages) + sum(call.links) + call.back for call in (prompt, first, second)]
    assert predicted["prefill_s"] == pytest.approx(turns[0] / 1000)
    assert predicted["total_s"] == pytest.approx((2 * sum(turns) - second.back) / 1000)
    assert predicted["tokens_per_s"] == pytest.approx(24 / predicted["total_s"])
    assert predicted["simulated_total_s"] == predicted["total_s"]
    assert predicted["decode_s"] == pytest.approx(predicted["total_s"] - predicted["prefill_s"])


def test_what_is_simulated_can_be_another_schedule_and_other_requests() -> None:
    short = [Request(1, 1, 1)] * 4
    found = simulate_workload(PROBLEM, PLAN, short, schedule="barrier")
    route = LengthCosts(PROBLEM, PLAN).route("prefill", 4, 1)
    assert found.total_ms == pytest.approx(sum(route.stages) + sum(route.links))
    assert simulate(PROBLEM, PLAN).total_ms > found.total_ms
