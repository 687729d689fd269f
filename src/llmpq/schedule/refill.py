"""The ``continuous`` schedule: which waiting request takes which slot, and when.

The slots form the micro-batches of the barrier schedule for as long as the run lasts. Whenever the turn of a micro-batch comes, its free
rows go to waiting requests, which are prefilled in chunks of at most xi rows; then one decode call goes over all of its rows, so that the
shape of a decode call never changes. Rows that have just been admitted join the next turn, when their first token is known. Pure numbers,
no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.schedule.batches import MicroBatch, balanced, micro_batches


@dataclass(frozen=True)
class Admission:
    """``requests`` (numbers) that take ``rows`` of a micro-batch in one prefill call."""

    requests: tuple[int, ...]
    rows: tuple[int, ...]


class Refill:
    """``batches`` are the micro-batches; ``admit`` and ``release`` say who comes and goes.

    ``sizes`` are (prompt tokens, new tokens at most) of every request. Those with most to generate go first, so that the end is not left
    to a single long one, and among equals those with the longest prompts, so that prompts of a chunk are much alike in length.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], slots: int, decode_size: int, prefill_size: int) -> None:
        self.batches: list[MicroBatch] = micro_batches(min(slots, len(sizes)), decode_size, prefill_size)
        self._most = prefill_size
        # The next one is at the end.
        self._waiting = sorted(range(len(sizes)), key=lambda number: (sizes[number][1], sizes[number][0], -number))
        self._free = [list(range(batch.rows)) for batch in self.batches]

    def admit(self, batch: int) -> list[Admission]:
        """Give the free rows of a micro-batch, lowest first, to waiting requests; returns the prefill calls that this makes."""
        free = sorted(self._free[batch])
        count = min(len(free), len(self._waiting))
        if not count:
            return []
        rows, self._free[batch] = free[:count], free[count:]
        taken = [self._waiting.pop() for _ in range(count)]
        found, first = [], 0
        for size in balanced(count, -(-count // self._most)):
            found.append(Admission(tuple(taken[first : first + size]), tuple(rows[first : first + size])))
            first += size
        return found

    def release(self, batch: int, row: int) -> None:
        """The request in this row has finished."""
        self._free[batch].append(row)
