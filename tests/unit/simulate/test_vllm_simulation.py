"""Runs as vLLM batches them, priced: instances worked out by hand."""

import pytest

from llmpq.simulate.costs import Route
from llmpq.simulate.run import Request, simulate_vllm


class Costs:
    """A prefill call takes a millisecond a token on every stage, a decode call ten and one a row; links take 2, the way back 3."""

    overlapped_sends = True

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def route(self, phase: str, rows: float, length: int) -> Route:
        ms = rows * length if phase == "prefill" else 10 + rows
        return Route((ms,) * self.stages, (2.0,) * (self.stages - 1), 3.0 if self.stages > 1 else 0.0)


def test_one_stage_pauses_between_a_result_and_the_next_call() -> None:
    requests = [Request(4, 3, 3)] * 2
    found = simulate_vllm(Costs(1), requests, slots=2, call_tokens=8, stages=1, pause_ms=0.5)
    assert found.prefill_ms == pytest.approx(8)
    assert found.total_ms == pytest.approx(8 + 0.5 + 12 + 0.5 + 12)
    assert found.tokens == (3, 3)
    assert found.stages == {"prefill": [8.0], "decode": [24.0]}


def test_two_stages_have_two_calls_under_way() -> None:
    found = simulate_vllm(Costs(2), [Request(4, 2, 2)] * 2, slots=2, call_tokens=4, stages=2, pause_ms=0.0, record=True)
    # prompts: 0–4 and 4–8 on stage 0, 6–10 and 10–14 on stage 1, back at 13 and 17; then a decode call of 11 each
    starts = [(event.resource, event.phase, event.start_ms) for event in found.events if event.resource.startswith("stage")]
    assert starts == [
        ("stage 0", "prefill", 0), ("stage 1", "prefill", 6), ("stage 0", "prefill", 4), ("stage 1", "prefill", 10),
        ("stage 0", "decode", 13), ("stage 1", "decode", 26), ("stage 0", "decode", 24), ("stage 1", "decode", 37),
    ]  # fmt: skip
    assert found.prefill_ms == 17
    assert found.total_ms == 48
    assert found.finished_ms == (40, 51)


def test_a_call_with_decode_steps_is_priced_by_all_of_its_tokens() -> None:
    found = simulate_vllm(Costs(1), [Request(4, 3, 3), Request(4, 1, 1)], slots=2, call_tokens=4, stages=1, pause_ms=0.0, record=True)
    # 4 tokens of a prompt; 3 of the next beside a token; its last one beside another
    assert [(event.phase, event.end_ms - event.start_ms) for event in found.events] == [("prefill", 4), ("prefill", 4), ("prefill", 2)]
