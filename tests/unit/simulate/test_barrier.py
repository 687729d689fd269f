"""The event simulation against hand-worked pipelines and the planner's closed form."""

import itertools
import random

import pytest

from llmpq.plan.makespan import Makespan, makespan
from llmpq.plan.microbatch import MicroBatches
from llmpq.simulate.barrier import Event, Pipeline, simulate_pipeline


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


@pytest.mark.parametrize("block", range(10))
def test_equals_the_closed_form_for_equal_micro_batches(block: int) -> None:
    for seed in range(100):
        pipeline, batches, tokens = even_pipeline(random.Random(1000 * block + seed))
        found, expected = simulate_pipeline(pipeline, batches, tokens), closed_form(pipeline, batches, tokens)
        assert found.prefill_ms == pytest.approx(expected.prefill_ms, rel=1e-12)
        assert found.decode_ms == pytest.approx(expected.decode_ms, rel=1e-12)


def test_two_stages_two_micro_batches_by_hand() -> None:
    """Prefill 3 + 5 per chunk, send 1: ends at 3+1+5 and again 5 later. Decode 2 + 2 with send 1 and return 1: a round takes 6."""
    batches = MicroBatches.choose(2, 1, 1)
    pipeline = Pipeline(
        {"prefill": [{1: 3.0}, {1: 5.0}], "decode": [{1: 2.0}, {1: 2.0}]}, {"prefill": [{1: 1.0}], "decode": [{1: 1.0}]}, {1: 1.0}
    )
    found = simulate_pipeline(pipeline, batches, 4)
    assert found.prefill_ms == 14.0
    # Rounds begin at 0, 6 and 12; in the last one the second micro-batch leaves stage 1 at 12 + 2 + 2 + 1 + 2.
    assert found.decode_ms == 2 * 6 + 2 + 1 + 2 + 2
    assert found.total_ms == 33.0


def test_one_device_decodes_every_micro_batch_every_round() -> None:
    """The published formula calls this nearly free; it is (n − 1) · m · t."""
    pipeline = Pipeline({"prefill": [{1: 1.0}], "decode": [{1: 2.0}]}, {"prefill": [], "decode": []}, {1: 0.0})
    assert simulate_pipeline(pipeline, MicroBatches.choose(3, 1, 1), 5).decode_ms == 4 * 3 * 2.0


def test_one_new_token_needs_no_decode() -> None:
    pipeline = Pipeline({"prefill": [{1: 1.0}], "decode": [{1: 2.0}]}, {"prefill": [], "decode": []}, {1: 0.0})
    assert simulate_pipeline(pipeline, MicroBatches.choose(1, 1, 1), 1).decode_ms == 0.0


def test_a_blocking_send_keeps_its_stage() -> None:
    tables = {"prefill": [{1: 1.0}, {1: 1.0}], "decode": [{1: 1.0}, {1: 1.0}]}
    sends = {"prefill": [{1: 3.0}], "decode": [{1: 3.0}]}
    batches = MicroBatches.choose(2, 1, 1)
    assert simulate_pipeline(Pipeline(tables, sends, {1: 0.0}), batches, 1).prefill_ms == 1 + 3 + 3 + 1
    assert simulate_pipeline(Pipeline(tables, sends, {1: 0.0}, overlapped_sends=False), batches, 1).prefill_ms == 4 + 4 + 1


@pytest.mark.parametrize("seed", range(40))
def test_the_timeline_is_one_that_could_happen(seed: int) -> None:
    """Ragged sizes too: no resource does two things at once, every micro-batch passes the stages in order, every step is there once."""
    draw = random.Random(seed)
    stages, slots = draw.randint(1, 4), draw.randint(1, 12)
    eta = draw.randint(1, slots)
    batches, tokens = MicroBatches.choose(slots, draw.randint(1, eta), eta), draw.randint(1, 5)

    def tables(phase: str, count: int) -> list[dict[int, float]]:
        return [{size: draw.uniform(0.1, 1) * size for size in set(batches.sizes(phase))} for _ in range(count)]

    phases = ("prefill", "decode")
    back = {size: draw.uniform(0.01, 3) for size in set(batches.decode)}
    pipeline = Pipeline({p: tables(p, stages) for p in phases}, {p: tables(p, stages - 1) for p in phases}, back, draw.random() < 0.5)
    found = simulate_pipeline(pipeline, batches, tokens)
    for _, events in grouped(found.events, lambda event: event.resource):
        assert all(a.end_ms <= b.start_ms + 1e-9 for a, b in itertools.pairwise(sorted(events, key=lambda e: (e.start_ms, e.end_ms))))
    for (phase, _), events in grouped(found.events, lambda event: (event.phase, event.micro_batch)):
        steps = sorted(events, key=lambda e: (e.start_ms, e.end_ms))
        assert all(a.end_ms <= b.start_ms + 1e-9 for a, b in itertools.pairwise(steps))
        rounds = 1 if phase == "prefill" else tokens - 1
        once = [name for j in range(stages) for name in (f"stage {j}", f"link {j}")][:-1]
        way = (
            [(number, name) for number in range(rounds) for name in [*once, "return"]][:-1]
            if stages > 1
            else [(n, "stage 0") for n in range(rounds)]
        )
        assert [(event.round, event.resource) for event in steps] == way
    decode = [event for event in found.events if event.phase == "decode"]
    assert all(event.start_ms >= found.prefill_ms for event in decode)
    assert max(event.end_ms for event in found.events) == pytest.approx(found.total_ms)


def grouped(events: tuple[Event, ...], key) -> list[tuple[object, list[Event]]]:
    return [(name, list(items)) for name, items in itertools.groupby(sorted(events, key=key), key=key)]
