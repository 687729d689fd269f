"""The sequences of one micro-batch while they are generated."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from llmpq.errors import ServeError
from llmpq.schedule.batches import MicroBatch
from llmpq.serve.stops import Decode, StopWatch


class Sequences:
    """Requests of a micro-batch with their state, one row each; a finished row stays as padding until all rows are done.

    ``ids`` [rows] int64 are the newest tokens and ``newest_margins`` [rows] their top-2 margins, both to be overwritten in place before
    ``accept``; ``positions`` [rows] are the cache positions that the next decode call writes; ``unfinished`` counts live rows.
    """

    def __init__(self, plan: MicroBatch, requests: Sequence[Mapping[str, Any]], ends: torch.Tensor, decode: Decode | None = None) -> None:
        rows = len(requests)
        limits = [request["max_new_tokens"] for request in requests]
        self.plan = plan
        self.unfinished = rows
        self.step = 0
        self.ids = torch.zeros(rows, dtype=torch.int64)
        self.newest_margins = torch.zeros(rows, dtype=torch.float32)
        self.positions = torch.tensor([len(request["prompt_tokens"]) for request in requests])
        self._requests = requests
        self._ends, self._end_ids = ends, frozenset(ends.tolist())
        self._limits = torch.tensor(limits)
        self._first_limit = min(limits)
        self._live = torch.ones(rows, dtype=torch.int64)
        self._watches = {row: StopWatch(decode, request["stop"]) for row, request in enumerate(requests) if decode and request.get("stop")}
        self._tokens = torch.zeros((max(limits), rows), dtype=torch.int64)
        self._margins = torch.zeros((max(limits), rows), dtype=torch.float32)

    def accept(self) -> list[dict[str, Any]]:
        """Take ``ids`` and ``newest_margins`` as the next token of every live row; returns the records of the rows this finished."""
        self._tokens[self.step] = self.ids
        self._margins[self.step] = self.newest_margins
        self.step += 1
        stopped = [row for row, watch in self._watches.items() if self._live[row] and watch.push(int(self.ids[row]))]
        if self._ends.numel() == 0 and self.step < self._first_limit and not stopped:
            return []
        over = self._limits <= self.step
        over[stopped] = True
        if self._ends.numel():
            over |= torch.isin(self.ids, self._ends)
        finished = torch.nonzero(over & (self._live == 1)).flatten().tolist()
        self._live[over] = 0
        self.unfinished -= len(finished)
        tokens, margins = self._tokens[: self.step], self._margins[: self.step]
        texts = {row: self._watches[row].text for row in stopped}
        return [record(self._requests[row], tokens[:, row], margins[:, row], self._end_ids, texts.get(row)) for row in finished]

    def advance(self) -> None:
        """Move the live rows to their next cache position; a finished row keeps its own, so that it never runs out of the cache."""
        self.positions += self._live


def record(
    request: Mapping[str, Any], tokens: torch.Tensor, margins: torch.Tensor, ends: Collection[int], text: str | None = None
) -> dict[str, Any]:
    """What is kept of a finished request: its ``tokens`` [n] and their top-2 ``margins`` [n]; ``ends`` are the tokens that end a sequence.

    ``text`` is what it says before the stop string that ended it. Raises ServeError where a margin is not finite.
    """
    if not bool(torch.isfinite(margins).all()):
        raise ServeError(f"request {request['id']}: the logits are not finite numbers; the weights or a kernel are broken")
    found, least = tokens.tolist(), int(margins.argmin())
    return {
        "id": request["id"],
        "tokens": found,
        **({} if text is None else {"text": text}),
        "finish_reason": "stop" if text is not None else "eos" if found[-1] in ends else "length",
        "min_margin": float(margins[least]),
        "min_margin_token": least,
        "margins": [float(f"{margin:.5g}") for margin in margins.tolist()],
    }


def padded_prompts(requests: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt lengths [rows] and right-padded ids [rows, tokens], both int64."""
    lengths = torch.tensor([len(request["prompt_tokens"]) for request in requests])
    ids = torch.zeros((len(requests), int(lengths.max())), dtype=torch.int64)
    for row, request in enumerate(requests):
        ids[row, : len(request["prompt_tokens"])] = torch.tensor(request["prompt_tokens"])
    return lengths, ids
