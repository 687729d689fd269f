"""The continuous schedule at work, on the first stage: a finished sequence's slot goes to a waiting request, prefill beside decode."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmpq.serve.driver import Driver
from llmpq.serve.refill import Admission, Refill
from llmpq.serve.rows import Rows
from llmpq.serve.sequences import padded_prompts
from llmpq.serve.transport import SCATTERED, Header, Kind

_Call = tuple[torch.Tensor, int]
"""The rows [k] of a micro-batch that a call gives a token, and over how many rows it goes."""

_UnderWay = deque[tuple[int, list[_Call]]]
"""What each micro-batch waits for: its number and its calls, in the order submitted."""


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
        self._requests, self._refill = requests, Refill(sizes, self._slots, self._decode_size, self._prefill_size)
        longest = max(limit for _, limit in sizes)
        self._rows = [Rows(batch.rows, longest, self._ends, self._decode_text) for batch in self._refill.batches]
        under_way: _UnderWay = deque()
        filled = last_token = start
        for index in range(len(self._rows)):
            self._turn(index, under_way)
        first_round = len(under_way)
        finished: list[dict[str, Any]] = []
        while under_way:
            self._emit(finished)  # while the stages are at work
            index, calls = under_way.popleft()
            finished = [record for call in calls for record in self._collect(index, *call)]
            last_token = time.perf_counter()
            first_round -= 1
            if first_round == 0:
                filled = last_token
            self._turn(index, under_way)
            self._report()
        self._emit(finished)
        self.clock.prefill_s += filled - start
        self.clock.decode_s += last_token - filled

    def _turn(self, index: int, under_way: _UnderWay) -> None:
        """Submit what a micro-batch can do now: prompts into its free rows, then a token for every row that has one."""
        generating = self._rows[index].generating
        calls = [self._prefill_into(index, admission) for admission in self._refill.admit(index)]
        if len(generating):
            batch, rows = self._refill.batches[index], self._rows[index]
            self._pipeline.submit(Header(Kind.DECODE, index, batch.first_slot, batch.rows, 1), rows.positions, rows.ids)
            calls.append((generating, batch.rows))
        if calls:
            under_way.append((index, calls))

    def _prefill_into(self, index: int, admission: Admission) -> _Call:
        requests = [self._requests[number] for number in admission.requests]
        self._rows[index].enter(admission.rows, requests)
        lengths, ids = padded_prompts(requests)
        rows = torch.tensor(admission.rows)
        slots = rows + self._refill.batches[index].first_slot
        for slot, request in zip(slots.tolist(), requests, strict=True):
            self._pipeline.assign(slot, [request])
        self._pipeline.submit(Header(Kind.PREFILL, index, SCATTERED, len(requests), ids.shape[1]), torch.cat((lengths, slots)), ids)
        self.clock.prompts += len(requests)
        self._report()
        return rows, len(rows)

    def _collect(self, index: int, rows: torch.Tensor, over: int) -> list[dict[str, Any]]:
        """Wait for the oldest call under way; returns the records that it finished."""
        ids, margins = torch.empty(over, dtype=torch.int64), torch.empty(over)
        self._pipeline.collect(ids, margins)
        if over > len(rows):  # a decode call goes over free rows too
            ids, margins = ids[rows], margins[rows]
        self.clock.tokens += len(rows)
        finished = self._rows[index].accept(rows, ids, margins)
        for row, _ in finished:
            self._refill.release(index, row)
        return [record for _, record in finished]
