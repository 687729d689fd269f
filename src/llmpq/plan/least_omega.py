"""Least Σ omega under memory and contiguity, exactly, without a solver: Pareto fronts per run of layers, then a shortest path over cuts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmpq.plan.candidate import Candidate, Counts, Floats
from llmpq.plan.problem import Device, Problem

_TIE = 1e-12


@dataclass(frozen=True)
class Front:
    """Non-dominated (bytes, Σ omega) of one run of layers, bytes ascending and omega strictly descending; ``counts`` [P, B]."""

    bytes: Counts
    omega: Floats
    counts: npt.NDArray[np.int32]

    @classmethod
    def of_nothing(cls, options: int) -> "Front":
        """No layers yet."""
        return cls(np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros((1, options), dtype=np.int32))

    def within(self, omega: float) -> "Front":
        """The part of the front whose Σ omega is at most ``omega``."""
        kept = self.omega <= omega
        return Front(self.bytes[kept], self.omega[kept], self.counts[kept])


class LeastOmega:
    """Answers ``best(candidate)`` and ``least(candidate)`` for the candidates given; equal devices share their fronts."""

    def __init__(self, problem: Problem, candidates: list[Candidate]) -> None:
        self.problem = problem
        self.omega = np.array([problem.omega[option] for option in problem.options]).T
        self.room: dict[int, int] = {}
        self.kind = [_kind(device, problem.devices) for device in problem.devices]
        for candidate in candidates:
            for device, capacity in zip(candidate.order, candidate.capacity.tolist(), strict=True):
                self.room[self.kind[device]] = max(self.room.get(self.kind[device], 0), capacity)
        self.fronts: dict[int, dict[tuple[int, int], Front]] = {}
        self.tables: dict[tuple[int, int], tuple[Floats, Counts]] = {}
        self.tails: dict[tuple[tuple[int, int], ...], Floats] = {}
        self.tied: dict[tuple[tuple[int, int, float, bytes], ...], tuple[Floats, Counts]] = {}

    def best(self, candidate: Candidate) -> tuple[Counts, int] | None:
        """Layers per stage and option [N, B] and the number of the ends with the least Σ omega; None where even the lowest do not fit.

        Of several with the least Σ omega the one with the fastest slowest decode stage.
        """
        least = self.least(candidate)
        if not np.isfinite(least):
            return None
        found = []
        for end, omega in enumerate(candidate.end_omega.tolist()):
            tables, best = self._shortest(candidate, end)
            if best[0, 0] + omega <= least + _TIE * max(1.0, least):
                slowest, cut = self._fastest_tied(candidate, end, tables, best)
                found.append((slowest, end, [table[1][a, b] for table, (a, b) in zip(tables, cut, strict=True)]))
        _, end, rows = min(found, key=lambda item: item[:2])
        return np.array(rows, dtype=np.int64), end

    def least(self, candidate: Candidate) -> float:
        """The least Σ omega, the ends' included; inf where even the lowest options do not fit."""
        return min(float(self._shortest(candidate, end)[1][0, 0]) + omega for end, omega in enumerate(candidate.end_omega.tolist()))

    def prefixes(self, candidate: Candidate, end: int) -> tuple[Floats, Floats]:
        """Least Σ omega [N+1, L+1], without the ends': of layers before i on the stages before j, and of layers i.. on stages j.. ."""
        tables, after = self._shortest(candidate, end)
        before = np.full_like(after, np.inf)
        before[0, 0] = 0.0
        for j, (omega, _) in enumerate(tables):
            before[j + 1] = (before[j][:, None] + omega).min(axis=0)
        return before, after

    def _shortest(self, candidate: Candidate, end: int) -> tuple[list[tuple[Floats, Counts]], Floats]:
        layers, stages = self.problem.layers, candidate.stages
        rooms = (candidate.capacity - candidate.end_bytes[end]).tolist()
        tables = [self._table(candidate, j, room) for j, room in enumerate(rooms)]
        # best[j][i]: least Σ omega of layers i.. on stages j.. ; stage j takes layers i..k-1. Orders that end alike share it.
        best = np.full((stages + 1, layers + 1), np.inf)
        best[stages, layers] = 0.0
        tail: tuple[tuple[int, int], ...] = ()
        for j in range(stages - 1, -1, -1):
            tail = ((self.kind[candidate.order[j]], rooms[j]), *tail)
            if tail not in self.tails:
                self.tails[tail] = (tables[j][0] + best[j + 1][None, :]).min(axis=1)
            best[j] = self.tails[tail]
        return tables, best

    def _fastest_tied(
        self, candidate: Candidate, end: int, tables: list[tuple[Floats, Counts]], best: Floats
    ) -> tuple[float, list[tuple[int, int]]]:
        """Among the cuts with the least Σ omega, the one whose slowest decode stage is fastest (min-max path over the tied arcs).

        Returns that stage's time in ms and, per stage, its range of layers. Orders that end alike, in memory and times, share the work.
        """
        layers, times = self.problem.layers, candidate.times["decode"]
        rooms = (candidate.capacity - candidate.end_bytes[end]).tolist()
        fixed = (times.fixed_largest + times.end_largest[end]).tolist()
        slowest = np.full(layers + 1, np.inf)
        slowest[layers] = 0.0
        follow = []
        tail: tuple[tuple[int, int, float, bytes], ...] = ()
        for j in range(candidate.stages - 1, -1, -1):
            layer_ms = times.layer_largest[j]
            tail = ((self.kind[candidate.order[j]], rooms[j], fixed[j], layer_ms.tobytes()), *tail)
            if tail not in self.tied:
                omega, counts = tables[j]
                total = omega + best[j + 1][None, :]
                equal = np.isfinite(total) & (total <= best[j][:, None] + _TIE * np.maximum(1.0, best[j][:, None]))
                worst = np.where(equal, np.maximum(fixed[j] + counts @ layer_ms, slowest[None, :]), np.inf)
                self.tied[tail] = worst.min(axis=1), worst.argmin(axis=1)
            slowest, after = self.tied[tail]
            follow.append(after)
        cut, first = [], 0
        for after in reversed(follow):
            cut.append((first, int(after[first])))
            first = cut[-1][1]
        return float(slowest[0]), cut

    def _table(self, candidate: Candidate, j: int, capacity: int) -> tuple[Floats, Counts]:
        """(Σ omega [L+1, L+1], counts [L+1, L+1, B]) of layers a..b-1 on stage j within ``capacity``; inf where they do not fit."""
        kind = self.kind[candidate.order[j]]
        key = (kind, capacity)
        if key not in self.tables:
            layers, options = self.omega.shape
            omega, counts = np.full((layers + 1, layers + 1), np.inf), np.zeros((layers + 1, layers + 1, options), dtype=np.int64)
            for (first, last), front in self._fronts(candidate, j).items():
                place = int(np.searchsorted(front.bytes, capacity, side="right")) - 1
                if place >= 0:
                    omega[first, last], counts[first, last] = front.omega[place], front.counts[place]
            self.tables[key] = omega, counts
        return self.tables[key]

    def _fronts(self, candidate: Candidate, j: int) -> dict[tuple[int, int], Front]:
        kind = self.kind[candidate.order[j]]
        if kind not in self.fronts:
            offered = np.flatnonzero(candidate.available[j])
            sizes, room = candidate.layer_bytes[j][offered], self.room[kind]
            found = {}
            for first in range(len(self.omega)):
                front = Front.of_nothing(self.omega.shape[1])
                for layer in range(first, len(self.omega)):
                    front = extend_front(front, offered, sizes, self.omega[layer][offered], room)
                    if not len(front.bytes):
                        break
                    found[first, layer + 1] = front
            self.fronts[kind] = found
        return self.fronts[kind]


def _kind(device: Device, devices: tuple[Device, ...]) -> int:
    """Devices whose layers take the same bytes share their fronts."""

    def bytes_of(item: Device) -> dict[str, int]:
        return {name: part.resident_bytes for name, part in item.options.items()}

    return next(index for index, other in enumerate(devices) if bytes_of(other) == bytes_of(device))


def extend_front(front: Front, offered: npt.NDArray[np.intp], sizes: Counts, omega: Floats, room: int) -> Front:
    """Add one layer under each option and keep what is not dominated and fits in ``room``."""
    total_bytes = (front.bytes[:, None] + sizes[None, :]).reshape(-1)
    total_omega = (front.omega[:, None] + omega[None, :]).reshape(-1)
    order = np.lexsort((total_omega, total_bytes))
    order = order[total_bytes[order] <= room]
    values = total_omega[order]
    lowest = np.minimum.accumulate(values)
    order = order[np.r_[True, values[1:] < lowest[:-1]]] if len(order) else order
    counts = front.counts[order // len(offered)].copy()
    counts[np.arange(len(order)), offered[order % len(offered)]] += 1
    return Front(total_bytes[order], total_omega[order], counts)
