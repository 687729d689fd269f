"""Which slots of the KV cache choose their tokens at random, and how: said on the first stage, kept and done on the last.

What is kept belongs to a slot, not to a batch or a wave, so it does not matter which schedule fills the slots.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from llmpq.model.greedy import greedy
from llmpq.model.sampling import draw, sample


class Sampling(NamedTuple):
    """Of one slot: ``temperature`` above 0, ``top_p`` in (0, 1], ``seed`` any 64 bits."""

    temperature: float
    top_p: float
    seed: int


class SlotSampling:
    """The last stage's slots; those without an entry are greedy."""

    def __init__(self) -> None:
        self._slots: dict[int, Sampling] = {}

    def assign(self, first_slot: int, seeds: torch.Tensor, values: torch.Tensor) -> None:
        """From now on slot ``first_slot`` + i has seed ``seeds``[i] (int64) and temperature and top-p ``values``[i, :2] (0: greedy)."""
        rows = zip(seeds.tolist(), values.tolist(), strict=True)
        for slot, (seed, (temperature, top_p)) in enumerate(rows, start=first_slot):
            if temperature > 0:
                self._slots[slot] = Sampling(temperature, top_p, seed)
            else:
                self._slots.pop(slot, None)

    def choose(self, logits: torch.Tensor, slots: Sequence[int], positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row and the margin between the two likeliest, as ``greedy`` gives them.

        ``logits`` [b, vocab] are those of ``slots`` [b]; ``positions`` [b] are the ones that the new tokens take.
        """
        ids, margins = greedy(logits)
        rows = [row for row, slot in enumerate(slots) if slot in self._slots] if self._slots else []
        if rows:
            chosen = [self._slots[slots[row]] for row in rows]
            draws = [draw(one.seed, int(positions[row])) for one, row in zip(chosen, rows, strict=True)]
            temperatures, top_ps = (np.array([one[field] for one in chosen]) for field in (0, 1))
            sampled = sample(logits[rows].cpu().numpy(), temperatures, top_ps, np.array(draws))
            ids[rows] = torch.from_numpy(sampled).to(ids.device)
        return ids, margins


class SamplingNotes:
    """The first stage's side: what has to be told to the last one before requests take slots. Greedy requests need no word."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def note(self, first_slot: int, requests: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Seeds [b] (int64) and values [b, 2] (fp32 temperature and top-p) for slots ``first_slot`` …; None if all is as the last knows."""
        sampled = {slot for slot, request in enumerate(requests, start=first_slot) if "sampling" in request}
        slots = set(range(first_slot, first_slot + len(requests)))
        if not sampled and not self._told & slots:
            return None
        self._told = self._told - slots | sampled
        greedy_row = {"seed": 0, "temperature": 0.0, "top_p": 1.0}
        rows = [request.get("sampling", greedy_row) for request in requests]
        values = torch.tensor([[row["temperature"], row["top_p"]] for row in rows], dtype=torch.float32)
        return torch.tensor([row["seed"] for row in rows], dtype=torch.int64), values
