"""The barrier schedule at work, on the first stage: prompts in, finished requests out."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmpq.serve.pipeline import Pipeline
from llmpq.serve.schedule import Chunk, MicroBatch, call_shapes, micro_batches, waves
from llmpq.serve.sequences import Sequences, padded_prompts
from llmpq.serve.stops import Decode
from llmpq.serve.transport import Header, Kind

PROGRESS_S = 0.5  # seconds between two reports of progress


@dataclass
class Clock:
    """Measured seconds, split as the plan's formula splits them (batch start → all prefilled → last token), and tokens made in them.

    ``prompts`` have been read by the first stage so far.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: int = 0
    prompts: int = 0


class Driver:
    """Serves requests in waves of ``slots`` over the pipeline.

    ``sizes`` are the plan's micro-batch sizes (prefill, decode); ``ends`` the token ids that end a sequence (empty: none does);
    ``decode`` turns token ids into text, for requests with stop strings;
    ``finished`` is called with records as soon as requests are done, ``progress`` now and then, after every call that takes long, with the
    numbers of prompts read and of tokens made: the launcher takes silence for a hang.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        slots: int,
        sizes: tuple[int, int],
        ends: Sequence[int],
        finished: Callable[[list[dict[str, Any]]], None],
        progress: Callable[[int, int], None],
        decode: Decode | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._slots = slots
        self._prefill_size, self._decode_size = sizes
        self._ends = torch.tensor(list(ends), dtype=torch.int64)
        self._decode_text = decode
        self._finished = finished
        self._progress = progress
        self._reported = time.perf_counter()
        self.clock = Clock()

    def warm_up(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Run every call shape of ``requests`` once through all stages, unmeasured: page faults and kernels' first calls are over then."""
        longest = max(len(request["prompt_tokens"]) for request in requests)
        shapes = [call_shapes(self._micro_batches(count)) for count in self._resident(len(requests))]
        for kind, sizes in zip((Kind.PREFILL, Kind.DECODE), zip(*shapes, strict=True), strict=True):
            for rows in sorted({rows for each in sizes for rows in each}, reverse=True):
                self._warm(kind, rows, longest)
                self._pipeline.collect(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows))
                self._report()

    def _resident(self, count: int) -> set[int]:
        """How many of ``count`` requests are resident at once, in one wave or another."""
        return {len(wave) for wave in waves(count, self._slots)}

    def _warm(self, kind: Kind, rows: int, longest: int) -> None:
        """Submit a call on prompts of ``longest`` tokens, or for the tokens right behind them."""
        header = Header(kind, 0, 0, rows, longest if kind is Kind.PREFILL else 1, measured=False)
        ids = torch.zeros((rows, longest) if kind is Kind.PREFILL else rows, dtype=torch.int64)
        self._pipeline.submit(header, torch.full((rows,), longest), ids)

    def serve(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Serve all ``requests`` (llmpq.serve.request.Request); times and tokens add up in ``clock``."""
        for wave in waves(len(requests), self._slots):
            self._serve_wave([requests[index] for index in wave])

    def _serve_wave(self, requests: Sequence[Mapping[str, Any]]) -> None:
        start = time.perf_counter()
        batches = [
            Sequences(plan, requests[plan.first_slot : plan.first_slot + plan.rows], self._ends, self._decode_text)
            for plan in self._micro_batches(len(requests))
        ]
        self._prefill(batches, requests)
        prefilled = time.perf_counter()
        last_token = self._decode(batches, prefilled)
        self.clock.prefill_s += prefilled - start
        self.clock.decode_s += last_token - prefilled

    def _micro_batches(self, count: int) -> list[MicroBatch]:
        return micro_batches(count, self._decode_size, self._prefill_size)

    def _prefill(self, batches: Sequence[Sequences], requests: Sequence[Mapping[str, Any]]) -> None:
        for batch in batches:
            for chunk in batch.plan.chunks:
                lengths, ids = padded_prompts(requests[chunk.first_slot : chunk.first_slot + chunk.rows])
                self._pipeline.assign(chunk.first_slot, requests[chunk.first_slot : chunk.first_slot + chunk.rows])
                header = Header(Kind.PREFILL, batch.plan.index, chunk.first_slot, chunk.rows, ids.shape[1])
                self._pipeline.submit(header, lengths, ids)
                self.clock.prompts += chunk.rows
                self._report()
        for batch in batches:
            for chunk in batch.plan.chunks:
                rows = _rows_of(chunk, batch.plan)
                self._pipeline.collect(batch.ids[rows], batch.newest_margins[rows])
                self._report()

    def _decode(self, batches: Sequence[Sequences], prefilled: float) -> float:
        """Decode rounds over the micro-batches until all are done; returns the time of the last token."""
        under_way: deque[Sequences] = deque()
        finished: list[dict[str, Any]] = []
        for batch in batches:
            finished += self._go_on(batch, under_way)
        last_token = prefilled
        while under_way:
            self._emit(finished)  # while the stages are at work
            batch = under_way.popleft()
            self._pipeline.collect(batch.ids, batch.newest_margins)
            last_token = time.perf_counter()
            finished = self._go_on(batch, under_way)
            self._report()
        self._emit(finished)
        return last_token

    def _go_on(self, batch: Sequences, under_way: deque[Sequences]) -> list[dict[str, Any]]:
        """Accept the newest tokens of ``batch`` and submit its next step unless it is done; returns the records it finished."""
        self.clock.tokens += batch.unfinished
        finished = batch.accept()
        if batch.unfinished:
            plan = batch.plan
            header = Header(Kind.DECODE, plan.index, plan.first_slot, plan.rows, 1, batch.step)
            self._pipeline.submit(header, batch.positions, batch.ids)
            batch.advance()
            under_way.append(batch)
        return finished

    def _emit(self, records: list[dict[str, Any]]) -> None:
        if records:
            self._finished(records)

    def _report(self) -> None:
        now = time.perf_counter()
        if now - self._reported >= PROGRESS_S:
            self._reported = now
            self._progress(self.clock.prompts, self.clock.tokens)


def _rows_of(chunk: Chunk, batch: MicroBatch) -> slice:
    first = chunk.first_slot - batch.first_slot
    return slice(first, first + chunk.rows)
