"""The barrier schedule: balanced micro-batches and chunks that cover every row once."""

import pytest

from llmpq.schedule.batches import Chunk, balanced, call_shapes, micro_batches, waves


def test_worked_example_of_ten_requests() -> None:
    batches = micro_batches(10, decode_size=4, prefill_size=2)
    assert [(b.first_slot, b.rows) for b in batches] == [(0, 4), (4, 3), (7, 3)]
    assert batches[0].chunks == (Chunk(0, 2), Chunk(2, 2))
    assert batches[1].chunks == (Chunk(4, 2), Chunk(6, 1))
    assert call_shapes(batches) == ([2, 1], [4, 3])


@pytest.mark.parametrize("requests", [1, 2, 7, 32])
@pytest.mark.parametrize("eta", [1, 3, 8, 40])
@pytest.mark.parametrize("xi", [1, 2, 5])
def test_every_row_is_covered_once_and_sizes_are_balanced(requests: int, eta: int, xi: int) -> None:
    batches = micro_batches(requests, eta, xi)
    assert [slot for b in batches for slot in range(b.first_slot, b.first_slot + b.rows)] == list(range(requests))
    assert len(batches) == -(-requests // eta)
    assert sum(len(b.chunks) for b in batches) == sum(-(-b.rows // xi) for b in batches)
    assert max(b.rows for b in batches) - min(b.rows for b in batches) <= 1
    for batch in batches:
        assert [slot for c in batch.chunks for slot in range(c.first_slot, c.first_slot + c.rows)] == list(
            range(batch.first_slot, batch.first_slot + batch.rows)
        )
        assert max(c.rows for c in batch.chunks) <= xi
        assert max(c.rows for c in batch.chunks) - min(c.rows for c in batch.chunks) <= 1


@pytest.mark.parametrize("slots", range(1, 40))
def test_the_number_of_micro_batches_of_a_candidate_comes_back(slots: int) -> None:
    """A candidate eta is a distinct value of ceil(G / m); serving eta gives ceil(G / eta) micro-batches with eta as the largest."""
    for eta in {-(-slots // m) for m in range(1, slots + 1)}:
        assert max(b.rows for b in micro_batches(slots, eta, eta)) == eta


def test_waves_are_consecutive_and_the_last_may_be_smaller() -> None:
    assert waves(10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert waves(4, 32) == [range(4)]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows cannot form 4"):
        balanced(3, 4)
    with pytest.raises(ValueError, match="at least 1"):
        micro_batches(3, 0, 1)
