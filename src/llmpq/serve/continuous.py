"""The continuous schedule at work, on the first stage: a finished sequence's slot goes to a waiting request, prefill beside decode."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmpq.schedule.batches import MicroBatch
from llmpq.schedule.continuous import run_turns
from llmpq.schedule.refill import Admission, Refill
from llmpq.serve.driver import Driver
from llmpq.serve.rows import Rows
from llmpq.serve.sequences import padded_prompts
from llmpq.serve.transport import SCATTERED, Header, Kind

_Call = tuple[torch.Tensor, int]
"""The rows [k] of a micro-batch that a call gives a token, and over how many rows it goes."""


class ContinuousDriver(Driver):
    """Serves requests over the pipeline, each micro-batch refilled whenever its turn comes (``refill``).

    In ``clock`` prefill ends when the slots have been filled once and every first token is there.
    """

    def _resident(self, count: int) -> set[int]:
        return {min(count, self._slots)}

    def _warm(self, kind: Kind, rows: int, longest: int) -> None:
        """As it will be: prompts into slots that are listed, tokens at unlike positions."""
        slots, ids = torch.arange(rows), torch.zeros((rows, longest) if kind is Kind.PREFILL else rows, dtype=torch.int64)
        if kind is Kind.PREFILL:
            header = Header(kind, 0, SCATTERED, rows, longest, measured=False)
            self._pipeline.submit(header, torch.cat((torch.full((rows,), longest), slots)), ids)
        else:
            self._pipeline.submit(Header(kind, 0, 0, rows, 1, measured=False), (longest - slots).clamp(min=0), ids)

    def serve(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Serve all ``requests`` (id, prompt_tokens, max_new_tokens)."""
        start = time.perf_counter()
        sizes = [(len(request["prompt_tokens"]), request["max_new_tokens"]) for request in requests]
        self._requests, refill = requests, Refill(sizes, self._slots, self._decode_size, self._prefill_size)
        longest = max(limit for _, limit in sizes)
        self._rows = [Rows(batch.rows, longest, self._ends, self._decode_text) for batch in refill.batches]
        run_turns(refill, self)
        self._emit()
        self.clock.prefill_s += self._prefilled - start
        self.clock.decode_s += self._last_token - self._prefilled

    def ready(self, batch: MicroBatch) -> _Call | None:
        """See TurnWork."""
        generating = self._rows[batch.index].generating
        return (generating, batch.rows) if len(generating) else None

    def admit(self, batch: MicroBatch, admission: Admission) -> _Call:
        """See TurnWork."""
        requests = [self._requests[number] for number in admission.requests]
        self._rows[batch.index].enter(admission.rows, requests)
        lengths, ids = padded_prompts(requests)
        rows = torch.tensor(admission.rows)
        slots = rows + batch.first_slot
        for slot, request in zip(slots.tolist(), requests, strict=True):
            self._pipeline.assign(slot, [request])
        header = Header(Kind.PREFILL, batch.index, SCATTERED, len(requests), ids.shape[1])
        self._pipeline.submit(header, torch.cat((lengths, slots)), ids)
        self.clock.prompts += len(requests)
        self._report()
        return rows, len(rows)

    def decode(self, batch: MicroBatch, call: _Call) -> None:
        """See TurnWork."""
        rows = self._rows[batch.index]
        self._pipeline.submit(Header(Kind.DECODE, batch.index, batch.first_slot, batch.rows, 1), rows.positions, rows.ids)

    def collect(self, batch: MicroBatch, call: _Call) -> list[int]:
        """See TurnWork."""
        self._emit()  # while the stages are at work
        rows, over = call
        ids, margins = torch.empty(over, dtype=torch.int64), torch.empty(over)
        self._pipeline.collect(ids, margins)
        self._last_token = time.perf_counter()
        if over > len(rows):  # a decode call goes over free rows too
            ids, margins = ids[rows], margins[rows]
        self.clock.tokens += len(rows)
        finished = self._rows[batch.index].accept(rows, ids, margins)
        self._done += [record for _, record in finished]
        self._report()
        return [row for row, _ in finished]

    def filled(self) -> None:
        """See TurnWork."""
        self._prefilled = self._last_token
