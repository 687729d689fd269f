"""The moves of bit-width transfer on counts [N, B]: which layers of which options change stage or option."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from llmpq.plan.candidate import Counts, Floats

PAIRS = 30_000  # two changes at once, tried when no single move helps


class Moves:
    """All single moves for ``stages`` stages and options of ``bits`` weight bits.

    ``change`` [K, N, B] is what a move adds to the counts. A move consists of one or two parts (j, p, q, times): ``times`` layers now at
    option p on stage j take option q (on stage j or another one).
    """

    def __init__(self, stages: int, bits: Sequence[int]) -> None:
        self.change_list: list[Counts] = []
        self.parts: list[tuple[tuple[int, int, int, int], ...]] = []
        self.source: list[int] = []
        self.shape = (stages, len(bits))
        every = range(len(bits))
        for j, p, q in itertools.product(range(stages), every, every):
            if p != q:
                self._add(j, [(j, p, -1), (j, q, 1)], [(j, p, q, 1)])
        self.in_place = len(self.parts)
        for (slow, fast), r, q in itertools.product(itertools.permutations(range(stages), 2), every, every):
            self._add(slow, [(slow, r, -1), (fast, q, 1)], [(slow, r, q, 1)])
        self.simple = len(self.parts)
        for (slow, fast), p, q in itertools.product(itertools.permutations(range(stages), 2), every, every):
            slots = bits[p] // max(bits[q], 1)
            if slots >= 2:
                for r in every:
                    changes = [(fast, p, -1), (fast, q, slots), (slow, r, 1 - slots)]
                    self._add(slow, changes, [(fast, p, q, 1), (slow, r, q, slots - 1)])
        self.change = np.array(self.change_list, dtype=np.int64).reshape(-1, *self.shape)

    def _add(self, source: int, changes: Sequence[tuple[int, int, int]], parts: Sequence[tuple[int, int, int, int]]) -> None:
        change = np.zeros(self.shape, dtype=np.int64)
        for j, b, layers in changes:
            change[j, b] += layers
        self.change_list.append(change)
        self.parts.append(tuple(parts))
        self.source.append(source)

    def sources(self, stages: Sequence[int]) -> np.ndarray:
        """Which moves take work from one of ``stages`` [K]."""
        return np.isin(np.array(self.source), stages)

    @functools.cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Parts as arrays: (j, p, q) [K, 2, 3] and how many layers [K, 2]; a missing second part has none."""
        padded = [(*parts, (0, 0, 0, 0))[:2] for parts in self.parts]
        table = np.array(padded, dtype=np.int64).reshape(-1, 2, 4)
        return table[:, :, :3], table[:, :, 3]

    def damage(self, each: Floats) -> Floats:
        """An estimate of what every move adds to Σ omega [K]; ``each`` [N, B, B] is that of single changes."""
        where, layers = self._columns
        values = np.where(layers > 0, each[where[..., 0], where[..., 1], where[..., 2]], 0.0)
        found: Floats = (values * layers).sum(axis=1)
        return found

    @functools.cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Two moves of single layers at once (indices [P], [P]); changes of option alone where all pairs would be too many."""
        count = self.simple if self.simple * (self.simple - 1) // 2 <= PAIRS else self.in_place
        first, second = np.triu_indices(count, 1)
        if len(first) > PAIRS:  # keep an even spread
            kept = np.linspace(0, len(first) - 1, PAIRS).astype(np.int64)
            first, second = first[kept], second[kept]
        return first, second
