"""Event simulation of requests that pass through a pipeline, by the schedules that the runtime itself runs (llmpq.schedule).

What the runtime computes, a simulation prices: a prefill call is padded to the longest of its prompts, a decode call attends in every row
as far as the longest of the micro-batch, rows that wait for their first token and, under the barrier, finished ones included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmpq.schedule.barrier import run_wave
from llmpq.schedule.batches import Chunk, MicroBatch, micro_batches, waves
from llmpq.schedule.continuous import run_turns
from llmpq.schedule.refill import Admission, Refill
from llmpq.simulate.costs import Costs
from llmpq.simulate.line import Event, Line
from llmpq.simulate.vllm import VllmRun


class Request(NamedTuple):
    """``limit`` is what it may generate, by which the schedule orders it, and ``new_tokens`` (at least 1) what it does."""

    prompt_tokens: int
    limit: int
    new_tokens: int


@dataclass(frozen=True)
class Simulation:
    """Milliseconds split as the runtime's clock splits them; ``finished_ms`` and ``tokens`` of every request, in the order given.

    ``stages`` and ``links`` (the way back is the last) are busy milliseconds by phase. ``events`` are there where they were asked for.
    """

    prefill_ms: float
    total_ms: float
    finished_ms: tuple[float, ...]
    tokens: tuple[int, ...]
    stages: dict[str, list[float]]
    links: dict[str, list[float]]
    event_count: int
    events: list[Event]

    @property
    def decode_ms(self) -> float:
        """What is not prefill."""
        return self.total_ms - self.prefill_ms


def simulate_requests(
    costs: Costs, requests: Sequence[Request], *, schedule: str, slots: int, sizes: tuple[int, int], record: bool = False
) -> Simulation:
    """Run ``requests`` through ``slots`` resident ones in micro-batches of at most ``sizes`` (prefill, decode) by ``schedule``."""
    run = (_Continuous if schedule == "continuous" else _Barrier)(Line(costs, record), requests)
    run.serve(slots, *sizes)
    return _found(run)


def simulate_vllm(
    costs: Costs, requests: Sequence[Request], *, slots: int, call_tokens: int, stages: int, pause_ms: float, record: bool = False
) -> Simulation:
    """Run ``requests`` as vLLM batches them, in calls of at most ``call_tokens``; ``pause_ms`` between a result and the next call."""
    run = VllmRun(Line(costs, record, pause_ms), requests)
    run.serve(slots, call_tokens, stages)
    return _found(run)


def _found(run: "_Run | VllmRun") -> Simulation:
    line = run.line
    phases = ("prefill", "decode")
    busy = {phase: line.busy_ms(phase) for phase in phases}
    return Simulation(
        run.prefill_ms,
        line.left,
        tuple(run.finished_ms),
        tuple(run.tokens),
        {phase: busy[phase][0] for phase in phases},
        {phase: busy[phase][1] for phase in phases},
        line.event_count,
        line.events,
    )


class _Run:
    def __init__(self, line: Line, requests: Sequence[Request]) -> None:
        self.line, self.requests = line, requests
        self.prefill_ms = 0.0
        self.finished_ms, self.tokens = [0.0] * len(requests), [0] * len(requests)


class _Barrier(_Run):
    """See WaveWork."""

    def serve(self, slots: int, prefill_size: int, decode_size: int) -> None:
        for wave in waves(len(self.requests), slots):
            batches = micro_batches(len(wave), decode_size, prefill_size)
            self._rows = [_WaveRows(self.requests, wave[batch.first_slot : batch.first_slot + batch.rows]) for batch in batches]
            self._began, self._first_slot = self.line.now, wave.start
            run_wave(batches, self)

    def read(self, batch: MicroBatch, chunk: Chunk) -> None:
        first = self._first_slot + chunk.first_slot
        length = max(request.prompt_tokens for request in self.requests[first : first + chunk.rows])
        self.line.submit("prefill", batch.index, chunk.rows, length)

    def first_tokens(self, batch: MicroBatch, chunk: Chunk) -> None:
        self.line.collect()

    def all_read(self) -> None:
        self.prefill_ms += self.line.now - self._began

    def go_on(self, batch: MicroBatch) -> bool:
        rows = self._rows[batch.index]
        for number in rows.accept():
            self.finished_ms[number], self.tokens[number] = self.line.now, rows.steps
        if not rows.unfinished:
            return False
        self.line.submit("decode", batch.index, batch.rows, rows.length(), rows.steps)
        return True

    def next_tokens(self, batch: MicroBatch) -> None:
        self.line.collect()


class _WaveRows:
    """The requests ``numbers`` of one micro-batch, all at the same step; finished ones stay where they are."""

    def __init__(self, requests: Sequence[Request], numbers: Sequence[int]) -> None:
        self.steps = 0
        self._soonest_last = sorted(numbers, key=lambda number: -requests[number].new_tokens)
        self._requests = requests
        self._kept = 0
        longest = 0
        self._longest = []  # prompt of the first k + 1, who finish last
        for number in self._soonest_last:
            longest = max(longest, requests[number].prompt_tokens)
            self._longest.append(longest)

    @property
    def unfinished(self) -> int:
        return len(self._soonest_last)

    def accept(self) -> list[int]:
        """A token for every row that is not done; returns those who are now."""
        self.steps += 1
        finished = []
        while self._soonest_last and self._requests[self._soonest_last[-1]].new_tokens <= self.steps:
            number = self._soonest_last.pop()
            self._longest.pop()
            self._kept = max(self._kept, self._requests[number].prompt_tokens + self.steps - 1)
            finished.append(number)
        return finished

    def length(self) -> int:
        """Tokens that the next decode call attends to, its own included."""
        return max(self._kept, self._longest[-1] + self.steps - 1) + 1


_DECODE: tuple[int, ...] = ()


class _Continuous(_Run):
    """See TurnWork; a call is the rows that it prefills, or _DECODE."""

    def serve(self, slots: int, prefill_size: int, decode_size: int) -> None:
        refill = Refill([(request.prompt_tokens, request.limit) for request in self.requests], slots, decode_size, prefill_size)
        self._rows = [_TurnRows() for _ in refill.batches]
        run_turns(refill, self)

    def ready(self, batch: MicroBatch) -> tuple[int, ...] | None:
        return _DECODE if self._rows[batch.index].live else None

    def admit(self, batch: MicroBatch, admission: Admission) -> tuple[int, ...]:
        requests = [self.requests[number] for number in admission.requests]
        for row, number, request in zip(admission.rows, admission.requests, requests, strict=True):
            self._rows[batch.index].waiting[row] = (number, request)
        self.line.submit("prefill", batch.index, len(requests), max(request.prompt_tokens for request in requests))
        return admission.rows

    def decode(self, batch: MicroBatch, call: tuple[int, ...]) -> None:
        rows = self._rows[batch.index]
        rows.under_way = 1
        self.line.submit("decode", batch.index, batch.rows, rows.length())

    def collect(self, batch: MicroBatch, call: tuple[int, ...]) -> list[int]:
        now = self.line.collect()
        rows = self._rows[batch.index]
        finished = rows.first_tokens(call) if call else rows.next_tokens()
        for _, number, made in finished:
            self.finished_ms[number], self.tokens[number] = now, made
        return [row for row, _, _ in finished]

    def filled(self) -> None:
        self.prefill_ms = self.line.now


class _TurnRows:
    """The requests in the rows of one micro-batch, each at a step of its own.

    ``steps`` decode calls are over and ``under_way`` (0 or 1) is not. A live row that will finish with decode call ``end`` has the cache
    position ``offset`` + steps; its entry in ``_ends`` is (row, request's number, tokens made).
    """

    def __init__(self) -> None:
        self.steps = self.under_way = 0
        self.waiting: dict[int, tuple[int, Request]] = {}
        self.live: dict[int, int] = {}
        self._ends: dict[int, list[Any]] = {}
        self._furthest = 0

    def length(self) -> int:
        """Tokens that a decode call attends to, its own included."""
        waiting = max((request.prompt_tokens for _, request in self.waiting.values()), default=0)
        return max(self._furthest + self.steps, waiting) + 1

    def first_tokens(self, rows: tuple[int, ...]) -> list[tuple[int, int, int]]:
        finished, begun = [], self.steps + self.under_way
        for row in rows:
            number, request = self.waiting.pop(row)
            if request.new_tokens == 1:
                finished.append((row, number, 1))
            else:
                self.live[row] = request.prompt_tokens - begun
                self._ends.setdefault(begun + request.new_tokens - 1, []).append((row, number, request.new_tokens))
        self._furthest = max(self.live.values(), default=0)
        return finished

    def next_tokens(self) -> list[tuple[int, int, int]]:
        self.steps += 1
        self.under_way = 0
        finished: list[tuple[int, int, int]] = self._ends.pop(self.steps, [])
        for row, _, _ in finished:
            del self.live[row]
        if finished:
            self._furthest = max(self.live.values(), default=0)
        return finished
