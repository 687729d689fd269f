"""The ``barrier`` schedule at work: the order in which the calls of one wave are made, whoever makes them.

The first stage of a pipeline runs it on real calls, the simulation on priced ones. Calls come back in the order in which they were made.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from llmpq.schedule.batches import Chunk, MicroBatch


class WaveWork(Protocol):
    """What the schedule asks for."""

    def read(self, batch: MicroBatch, chunk: Chunk) -> None:
        """Start the prefill call of a chunk."""

    def first_tokens(self, batch: MicroBatch, chunk: Chunk) -> None:
        """Wait for the oldest call, which was this chunk's."""

    def all_read(self) -> None:
        """Every prompt has its first token."""

    def go_on(self, batch: MicroBatch) -> bool:
        """Take the newest token of every row; start the next decode call unless that finished the last row, and say whether."""

    def next_tokens(self, batch: MicroBatch) -> None:
        """Wait for the oldest call, which was this micro-batch's decode call."""


def run_wave(batches: Sequence[MicroBatch], work: WaveWork) -> None:
    """All prefill calls, then decode rounds over the micro-batches until every row is done."""
    for batch, chunk in _chunks(batches):
        work.read(batch, chunk)
    for batch, chunk in _chunks(batches):
        work.first_tokens(batch, chunk)
    work.all_read()
    under_way = deque(batch for batch in batches if work.go_on(batch))
    while under_way:
        batch = under_way.popleft()
        work.next_tokens(batch)
        if work.go_on(batch):
            under_way.append(batch)


def _chunks(batches: Sequence[MicroBatch]) -> Iterable[tuple[MicroBatch, Chunk]]:
    return ((batch, chunk) for batch in batches for chunk in batch.chunks)
