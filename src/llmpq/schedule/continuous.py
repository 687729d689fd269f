"""The ``continuous`` schedule at work: whose turn it is, and which calls a turn makes, whoever makes them (see ``refill``).

The first stage of a pipeline runs it on real calls, the simulation on priced ones. Calls come back in the order in which they were made.
"""

from collections import deque
from collections.abc import Iterable
from typing import Protocol, TypeVar

from llmpq.schedule.batches import MicroBatch
from llmpq.schedule.refill import Admission, Refill

C = TypeVar("C")


class TurnWork(Protocol[C]):
    """What the schedule asks for; ``C`` is whatever tells a call under way from others."""

    def ready(self, batch: MicroBatch) -> C | None:
        """The decode call that a micro-batch can make now: for the rows whose last token is known; None where there is none."""

    def admit(self, batch: MicroBatch, admission: Admission) -> C:
        """Start a prefill call."""

    def decode(self, batch: MicroBatch, call: C) -> None:
        """Start that decode call."""

    def collect(self, batch: MicroBatch, call: C) -> Iterable[int]:
        """Wait for the oldest call, which was this one; returns the rows whose request it finished."""

    def filled(self) -> None:
        """The slots have been filled once, and every first token is there."""


def run_turns(refill: Refill, work: TurnWork[C]) -> None:
    """Micro-batches in turn, each when all of its calls have come back: prompts into its free rows, then a token for every row that has
    one."""
    under_way: deque[tuple[MicroBatch, list[C]]] = deque()

    def turn(batch: MicroBatch) -> None:
        ready = work.ready(batch)
        calls = [work.admit(batch, admission) for admission in refill.admit(batch.index)]
        if ready is not None:
            work.decode(batch, ready)
            calls.append(ready)
        if calls:
            under_way.append((batch, calls))

    for batch in refill.batches:
        turn(batch)
    first_round = len(under_way)
    while under_way:
        batch, calls = under_way.popleft()
        for call in calls:
            for row in work.collect(batch, call):
                refill.release(batch.index, row)
        first_round -= 1
        if first_round == 0:
            work.filled()
        turn(batch)
