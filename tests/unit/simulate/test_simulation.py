"""The event simulation against hand-worked pipelines, the planner's closed form and what no schedule can beat."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from llmpq.plan.makespan import Makespan, makespan
from llmpq.plan.microbatch import MicroBatches
from llmpq.simulate.costs import Pipeline, Route
from llmpq.simulate.run import Request, Simulation, simulate_requests

SCHEDULES = ("barrier", "continuous")


def even_pipeline(draw: random.Random) -> tuple[Pipeline, MicroBatches, int]:
    """Random times, micro-batches of equal size, and a way back that is not slower than the slowest stage or link."""
    stages, eta = draw.randint(1, 4), draw.randint(1, 4)
    xi = draw.choice([size for size in range(1, eta + 1) if eta % size == 0])
    batches = MicroBatches.choose(eta * draw.randint(1, 5), xi, eta)
    scale = draw.choice([0.0, 0.1, 1.0, 2.0])
    sizes = {"prefill": xi, "decode": eta}
    compute = {phase: [{size: draw.uniform(0.1, 1)} for _ in range(stages)] for phase, size in sizes.items()}
    sends = {phase: [{size: draw.uniform(0, 1) * scale} for _ in range(stages - 1)] for phase, size in sizes.items()}
    slowest = max(table[eta] for table in compute["decode"] + sends["decode"])
    back = {eta: draw.uniform(0, slowest) if stages > 1 else 0.0}
    return Pipeline(compute, sends, back, overlapped_sends=draw.random() < 0.6), batches, draw.randint(1, 6)


def closed_form(pipeline: Pipeline, batches: MicroBatches, new_tokens: int) -> Makespan:
    phases = {}
    for phase in ("prefill", "decode"):
        sizes = batches.sizes(phase)
        both = [
            [(table[max(sizes)], sum(table[size] for size in sizes) - table[max(sizes)]) for table in tables]
            for tables in (pipeline.stages[phase], pipeline.links[phase])
        ]
        if not pipeline.overlapped_sends:
            padded = [*both[1], (0.0, 0.0)]
            both = [[(t + c, rest + others) for (t, rest), (c, others) in zip(both[0], padded, strict=True)], []]
        phases[phase] = (both[0], both[1])
    return makespan(phases["prefill"], phases["decode"], pipeline.back[batches.eta], new_tokens)


def batch(pipeline: Pipeline, batches: MicroBatches, new_tokens: int, schedule: str = "barrier", **others: Any) -> Simulation:
    """All requests of ``batches`` alike and resident at once."""
    slots = sum(batches.decode)
    sizes = (batches.xi, batches.eta)
    return simulate_requests(pipeline, [Request(1, new_tokens, new_tokens)] * slots, schedule=schedule, slots=slots, sizes=sizes, **others)


@pytest.mark.parametrize("block", range(10))
def test_equals_the_closed_form_for_equal_micro_batches(block: int) -> None:
    for seed in range(100):
        pipeline, batches, tokens = even_pipeline(random.Random(1000 * block + seed))
        found, expected = batch(pipeline, batches, tokens), closed_form(pipeline, batches, tokens)
        assert found.prefill_ms == pytest.approx(expected.prefill_ms, rel=1e-12)
        assert found.decode_ms == pytest.approx(expected.decode_ms, rel=1e-11, abs=1e-12)


def test_two_stages_two_micro_batches_by_hand() -> None:
    """Prefill 3 + 5 per chunk, send 1: ends at 3+1+5 and again 5 later. Decode 2 + 2 with send 1 and return 1: a round takes 6."""
    batches = MicroBatches.choose(2, 1, 1)
    pipeline = Pipeline(
        {"prefill": [{1: 3.0}, {1: 5.0}], "decode": [{1: 2.0}, {1: 2.0}]}, {"prefill": [{1: 1.0}], "decode": [{1: 1.0}]}, {1: 1.0}
    )
    found = batch(pipeline, batches, 4)
    assert found.prefill_ms == 14.0
    # Rounds begin at 0, 6 and 12; in the last one the second micro-batch leaves stage 1 at 12 + 2 + 2 + 1 + 2.
    assert found.decode_ms == 2 * 6 + 2 + 1 + 2 + 2
    assert found.total_ms == 33.0
    assert found.stages == {"prefill": [6.0, 10.0], "decode": [12.0, 12.0]}
    assert found.links == {"prefill": [2.0, 0.0], "decode": [6.0, 6.0]}


def test_one_device_decodes_every_micro_batch_every_round() -> None:
    """The published formula calls this nearly free; it is (n − 1) · m · t."""
    pipeline = Pipeline({"prefill": [{1: 1.0}], "decode": [{1: 2.0}]}, {"prefill": [], "decode": []}, {1: 0.0})
    assert batch(pipeline, MicroBatches.choose(3, 1, 1), 5).decode_ms == 4 * 3 * 2.0


def test_one_new_token_needs_no_decode() -> None:
    pipeline = Pipeline({"prefill": [{1: 1.0}], "decode": [{1: 2.0}]}, {"prefill": [], "decode": []}, {1: 0.0})
    assert batch(pipeline, MicroBatches.choose(1, 1, 1), 1).decode_ms == 0.0


def test_a_blocking_send_keeps_its_stage() -> None:
    tables = {"prefill": [{1: 1.0}, {1: 1.0}], "decode": [{1: 1.0}, {1: 1.0}]}
    sends = {"prefill": [{1: 3.0}], "decode": [{1: 3.0}]}
    batches = MicroBatches.choose(2, 1, 1)
    assert batch(Pipeline(tables, sends, {1: 0.0}), batches, 1).prefill_ms == 1 + 3 + 3 + 1
    assert batch(Pipeline(tables, sends, {1: 0.0}, overlapped_sends=False), batches, 1).prefill_ms == 4 + 4 + 1


class Growing:
    """Random costs that grow with rows and length, over a few stages."""

    def __init__(self, draw: random.Random, overlapped: bool = True) -> None:
        stages = draw.randint(1, 4)
        self.overlapped_sends = overlapped
        self.fixed = [draw.uniform(0.1, 1) for _ in range(stages)]
        self.each = {phase: [draw.uniform(0.01, 0.2) for _ in range(stages)] for phase in ("prefill", "decode")}
        self.sends = [draw.uniform(0, 0.2) for _ in range(stages - 1)]
        self.back = draw.uniform(0, 0.5) if stages > 1 else 0.0

    def route(self, phase: str, rows: int, length: int) -> Route:
        tokens = rows * length if phase == "prefill" else rows
        stages = tuple(fixed + each * rows * length for fixed, each in zip(self.fixed, self.each[phase], strict=True))
        return Route(stages, tuple(send * tokens for send in self.sends), self.back)


def random_requests(draw: random.Random, count: int) -> list[Request]:
    return [Request(draw.randint(1, 9), limit := draw.randint(1, 9), draw.randint(1, limit)) for _ in range(count)]


def random_case(seed: int) -> tuple[Growing, list[Request], int, tuple[int, int]]:
    draw = random.Random(seed)
    slots = draw.randint(1, 12)
    decode = draw.randint(1, slots)
    return Growing(draw, draw.random() < 0.6), random_requests(draw, draw.randint(1, 40)), slots, (draw.randint(1, decode), decode)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(60))
def test_no_schedule_beats_the_busiest_stage_nor_a_requests_own_chain(seed: int, schedule: str) -> None:
    costs, requests, slots, sizes = random_case(seed)
    found = simulate_requests(costs, requests, schedule=schedule, slots=slots, sizes=sizes)
    busy = [sum(found.stages[phase][j] for phase in found.stages) for j in range(len(costs.fixed))]
    assert found.total_ms >= max(busy) * (1 - 1e-12)
    for request, finished in zip(requests, found.finished_ms, strict=True):
        calls = [costs.route("prefill", 1, request.prompt_tokens)]
        calls += [costs.route("decode", 1, request.prompt_tokens + step) for step in range(1, request.new_tokens)]
        assert finished >= sum(sum(call.stages) + sum(call.links) + call.back for call in calls) * (1 - 1e-12)
    assert max(found.finished_ms) - costs.back == pytest.approx(found.total_ms)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(60))
def test_every_token_of_every_request_is_made_once(seed: int, schedule: str) -> None:
    """Also by the calls: a row of a prefill call for each request, and as many decode calls as its tokens need."""
    costs, requests, slots, sizes = random_case(seed)
    found = simulate_requests(costs, requests, schedule=schedule, slots=slots, sizes=sizes, record=True)
    assert found.tokens == tuple(request.new_tokens for request in requests)
    calls = [event for event in found.events if event.resource == "stage 0"]
    assert sum(event.rows for event in calls if event.phase == "prefill") == len(requests)
    rows_given = sum(event.rows for event in calls if event.phase == "decode")
    assert rows_given >= sum(request.new_tokens - 1 for request in requests)
    if (slots, *sizes) == (1, 1, 1):
        assert rows_given == sum(request.new_tokens - 1 for request in requests)
    assert found.event_count == len(found.events)


@pytest.mark.parametrize("seed", range(40))
def test_another_wave_never_makes_the_barrier_end_earlier(seed: int) -> None:
    costs, _, slots, sizes = random_case(seed)
    draw = random.Random(seed)
    requests = random_requests(draw, 3 * slots)
    totals = [
        simulate_requests(costs, requests[: slots * waves], schedule="barrier", slots=slots, sizes=sizes).total_ms for waves in (1, 2, 3)
    ]
    assert totals == sorted(totals)


@pytest.mark.parametrize("seed", range(40))
def test_another_request_at_the_end_of_the_queue_never_makes_the_continuous_schedule_end_earlier(seed: int) -> None:
    """Prompts are read one a call: else one more in a turn cuts its prompts into smaller calls, which may pass the stages sooner."""
    costs, _, slots, (_, decode) = random_case(seed)
    draw = random.Random(seed)
    requests = sorted(random_requests(draw, slots + 8), key=lambda request: (-request.limit, -request.prompt_tokens))
    totals = [
        simulate_requests(costs, requests[:count], schedule="continuous", slots=slots, sizes=(1, decode)).total_ms
        for count in range(slots, len(requests) + 1)
    ]
    assert all(fewer <= more + 1e-9 for fewer, more in itertools.pairwise(totals))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(40))
def test_the_timeline_is_one_that_could_happen(seed: int, schedule: str) -> None:
    """No resource does two things at once, every call passes stages and links in order, a micro-batch waits for its calls to be back."""
    costs, requests, slots, sizes = random_case(seed)
    found = simulate_requests(costs, requests, schedule=schedule, slots=slots, sizes=sizes, record=True)
    stages = len(costs.fixed)
    way = [name for j in range(stages) for name in (f"stage {j}", f"link {j}")][:-1] + (["return"] if stages > 1 else [])
    for _, events in grouped(found, lambda event: event.resource):
        assert all(a.end_ms <= b.start_ms + 1e-9 for a, b in itertools.pairwise(events))
    back: dict[int, float] = {}
    for call, events in grouped(found, lambda event: event.call):
        assert [event.resource for event in events] == way
        assert all(a.end_ms <= b.start_ms + 1e-9 for a, b in itertools.pairwise(events))
        back[call] = events[-1].end_ms
    for _, events in grouped(found, lambda event: event.micro_batch):
        calls = [event for event in events if event.resource == "stage 0"]
        for earlier, later in itertools.pairwise(calls):
            if earlier.phase == "decode":
                assert later.start_ms >= back[earlier.call] - 1e-9
    assert max(event.end_ms for event in found.events if event.resource == way[-1 if stages == 1 else -2]) == pytest.approx(found.total_ms)


def grouped(found: Simulation, key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    return [(name, list(events)) for name, events in itertools.groupby(sorted(found.events, key=key), key=key)]


def test_a_freed_slot_goes_to_a_waiting_request_by_hand() -> None:
    """One stage, two slots in one micro-batch, prompts one a call: 2 ms a prompt, 1 ms a decode call; limits 4, 2 and 2."""
    pipeline = Pipeline({"prefill": [{1: 2.0}], "decode": [{2: 1.0}]}, {"prefill": [], "decode": []}, {2: 0.0})
    requests = [Request(5, 2, 2), Request(5, 4, 4), Request(5, 2, 2)]
    found = simulate_requests(pipeline, requests, schedule="continuous", slots=2, sizes=(1, 2), record=True)
    # 0–4 prompts of 1 and 0, 4–5 both get their second token: 0 is done; 5–7 the prompt of 2, 7–8 third token of 1; 8–9 both end.
    assert [(event.phase, event.start_ms, event.end_ms) for event in found.events] == [
        ("prefill", 0.0, 2.0), ("prefill", 2.0, 4.0), ("decode", 4.0, 5.0),
        ("prefill", 5.0, 7.0), ("decode", 7.0, 8.0), ("decode", 8.0, 9.0),
    ]  # fmt: skip
    assert found.prefill_ms == 4.0
    assert found.finished_ms == (5.0, 9.0, 9.0)


class Lengths:
    """One stage; a call takes its length in ms."""

    overlapped_sends = True

    def route(self, phase: str, rows: int, length: int) -> Route:
        return Route((float(length),), (), 0.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Prompts padded to 6; then rows at 4 + 1 … and 6 + 1. The one that has finished stays where its next token would have been.
        ("barrier", [("prefill", 6), ("decode", 7), ("decode", 8), ("decode", 8), ("decode", 8)]),
        # The free row counts no more: 4 + 2, 4 + 3, 4 + 4.
        ("continuous", [("prefill", 6), ("decode", 7), ("decode", 6), ("decode", 7), ("decode", 8)]),
    ],
)
def test_a_call_is_as_long_as_its_longest_row(schedule: str, expected: list[tuple[str, int]]) -> None:
    requests = [Request(4, 5, 5), Request(6, 2, 2)]
    found = simulate_requests(Lengths(), requests, schedule=schedule, slots=2, sizes=(2, 2), record=True)
    assert [(event.phase, event.end_ms - event.start_ms) for event in found.events] == expected
