"""The requests that occupy the rows of a micro-batch at the moment, each at a step of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmpq.serve.sequences import record
from llmpq.serve.stops import Decode, StopWatch


class Rows:
    """State of ``rows`` rows that hold requests of at most ``longest`` new tokens; ``ends`` are the tokens that end a sequence.

    ``ids`` [rows] int64 are the newest tokens, ``positions`` [rows] the cache positions that the next decode call writes: of a row that
    waits for its first token the one behind its prompt, and of a free row 0, where a prompt will be written over it.
    """

    def __init__(self, rows: int, longest: int, ends: torch.Tensor, decode: Decode | None = None) -> None:
        self.ids = torch.zeros(rows, dtype=torch.int64)
        self.positions = torch.zeros(rows, dtype=torch.int64)
        self._requests: list[Mapping[str, Any] | None] = [None] * rows
        self._decode = decode
        self._watches: dict[int, StopWatch] = {}
        self._ends = ends
        self._end_ids = frozenset(ends.tolist())
        self._live = torch.zeros(rows, dtype=torch.bool)
        self._steps = torch.zeros(rows, dtype=torch.int64)
        self._limits = torch.zeros(rows, dtype=torch.int64)
        self._tokens = torch.zeros((rows, longest), dtype=torch.int64)
        self._margins = torch.zeros((rows, longest), dtype=torch.float32)

    @property
    def generating(self) -> torch.Tensor:
        """Numbers [k] of the rows whose last token is known and whose next is not."""
        return torch.nonzero(self._live).flatten()

    def enter(self, rows: Sequence[int], requests: Sequence[Mapping[str, Any]]) -> None:
        """Requests to be prefilled take free rows."""
        for row, request in zip(rows, requests, strict=True):
            self._requests[row] = request
            self._watches.pop(row, None)
            if self._decode is not None and request.get("stop"):
                self._watches[row] = StopWatch(self._decode, request["stop"])
            self._limits[row] = request["max_new_tokens"]
            self._steps[row] = 0
            self.positions[row] = len(request["prompt_tokens"])

    def accept(self, rows: torch.Tensor, ids: torch.Tensor, margins: torch.Tensor) -> list[tuple[int, dict[str, Any]]]:
        """Take ``ids`` [k] and ``margins`` [k] as the next tokens of ``rows`` [k]; returns (row, record) of those that this finished."""
        steps = self._steps[rows]
        self._tokens[rows, steps] = ids
        self._margins[rows, steps] = margins
        self.ids[rows] = ids
        self.positions[rows] += (steps > 0).long()
        self._steps[rows] = steps + 1
        over = self._limits[rows] <= steps + 1
        if self._end_ids:
            over |= torch.isin(ids, self._ends)
        stopped = set()
        if self._watches:
            numbers = rows.tolist()
            stopped = {
                row for row, token in zip(numbers, ids.tolist(), strict=True) if row in self._watches and self._watches[row].push(token)
            }
            over |= torch.tensor([row in stopped for row in numbers])
        self._live[rows] = ~over
        return [(row, self._leave(row, row in stopped)) for row in rows[over].tolist()]

    def _leave(self, row: int, stopped: bool) -> dict[str, Any]:
        request, steps = self._requests[row], int(self._steps[row])
        assert request is not None
        self._requests[row] = None
        self.positions[row] = 0
        text = self._watches[row].text if stopped else None
        return record(request, self._tokens[row, :steps], self._margins[row, :steps], self._end_ids, text)
