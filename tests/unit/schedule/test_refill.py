"""The continuous schedule's policy: every request gets a row once, and a row has one request at a time."""

import random

import pytest

from llmpq.schedule.batches import micro_batches
from llmpq.schedule.refill import Admission, Refill


def test_worked_example_of_five_requests_and_three_slots() -> None:
    refill = Refill([(4, 8), (9, 8), (5, 8), (2, 9), (7, 1)], slots=3, decode_size=2, prefill_size=2)
    assert [batch.rows for batch in refill.batches] == [2, 1]
    assert refill.admit(0) == [Admission((3, 1), (0, 1))]  # most to generate, then the longest prompts
    assert refill.admit(1) == [Admission((2,), (0,))]
    assert refill.admit(0) == []
    refill.release(0, 1)
    assert refill.admit(0) == [Admission((0,), (1,))]
    refill.release(1, 0)
    assert refill.admit(1) == [Admission((4,), (0,))]


def test_free_rows_are_filled_in_chunks_of_the_prefill_size() -> None:
    refill = Refill([(1, 1)] * 7, slots=7, decode_size=7, prefill_size=3)
    found = refill.admit(0)
    assert [len(each.requests) for each in found] == [3, 2, 2]
    assert [row for each in found for row in each.rows] == list(range(7))


@pytest.mark.parametrize("seed", range(20))
def test_each_request_is_served_once_and_no_row_is_given_twice(seed: int) -> None:
    draw = random.Random(seed)
    count, slots = draw.randint(1, 60), draw.randint(1, 12)
    decode, prefill = draw.randint(1, slots), draw.randint(1, slots)
    refill = Refill([(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count)], slots, decode, prefill)
    assert refill.batches == micro_batches(min(slots, count), decode, prefill)
    held: dict[tuple[int, int], int] = {}
    served: list[int] = []
    while len(served) < count:
        batch = draw.randrange(len(refill.batches))
        for admission in refill.admit(batch):
            assert len(admission.requests) <= prefill
            for row, request in zip(admission.rows, admission.requests, strict=True):
                assert (batch, row) not in held
                assert row < refill.batches[batch].rows
                held[batch, row] = request
        for key in draw.sample(sorted(held), min(len(held), draw.randint(0, 3))):
            served.append(held.pop(key))
            refill.release(*key)
    assert sorted(served) == list(range(count))
