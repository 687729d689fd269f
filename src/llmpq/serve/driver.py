"""The barrier schedule at work, on the first stage: prompts in, finished requests out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmpq.schedule.barrier import run_wave
from llmpq.schedule.batches import Chunk, MicroBatch, call_shapes, micro_batches, waves
from llmpq.serve.pipeline import Pipeline
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
        self._requests: Sequence[Mapping[str, Any]] = ()
        self._sequences: list[Sequences] = []
        self._done: list[dict[str, Any]] = []
        self._prefilled = self._last_token = 0.0
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
        batches = self._micro_batches(len(requests))
        self._requests = requests
        self._sequences = [
            Sequences(batch, requests[batch.first_slot : batch.first_slot + batch.rows], self._ends, self._decode_text) for batch in batches
        ]
        run_wave(batches, self)
        self._emit()
        self.clock.prefill_s += self._prefilled - start
        self.clock.decode_s += self._last_token - self._prefilled

    def read(self, batch: MicroBatch, chunk: Chunk) -> None:
        """See WaveWork."""
        requests = self._requests[chunk.first_slot : chunk.first_slot + chunk.rows]
        lengths, ids = padded_prompts(requests)
        self._pipeline.assign(chunk.first_slot, requests)
        self._pipeline.submit(Header(Kind.PREFILL, batch.index, chunk.first_slot, chunk.rows, ids.shape[1]), lengths, ids)
        self.clock.prompts += chunk.rows
        self._report()

    def first_tokens(self, batch: MicroBatch, chunk: Chunk) -> None:
        """See WaveWork."""
        sequences, first = self._sequences[batch.index], chunk.first_slot - batch.first_slot
        rows = slice(first, first + chunk.rows)
        self._pipeline.collect(sequences.ids[rows], sequences.newest_margins[rows])
        self._report()

    def all_read(self) -> None:
        """See WaveWork."""
        self._prefilled = self._last_token = time.perf_counter()

    def go_on(self, batch: MicroBatch) -> bool:
        """See WaveWork."""
        sequences = self._sequences[batch.index]
        self.clock.tokens += sequences.unfinished
        self._done += sequences.accept()
        if sequences.unfinished:
            header = Header(Kind.DECODE, batch.index, batch.first_slot, batch.rows, 1, sequences.step)
            self._pipeline.submit(header, sequences.positions, sequences.ids)
            sequences.advance()
        self._report()
        return sequences.unfinished > 0

    def next_tokens(self, batch: MicroBatch) -> None:
        """See WaveWork."""
        self._emit()  # while the stages are at work
        sequences = self._sequences[batch.index]
        self._pipeline.collect(sequences.ids, sequences.newest_margins)
        self._last_token = time.perf_counter()

    def _micro_batches(self, count: int) -> list[MicroBatch]:
        return micro_batches(count, self._decode_size, self._prefill_size)

    def _emit(self) -> None:
        """Hand on what has finished since the last time."""
        if self._done:
            self._finished(self._done)
            self._done = []

    def _report(self) -> None:
        now = time.perf_counter()
        if now - self._reported >= PROGRESS_S:
            self._reported = now
            self._progress(self.clock.prompts, self.clock.tokens)
