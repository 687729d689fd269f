"""Plans one by one, where a bound's multipliers leave a gap: partial plans with all their sums, the worse of two left out.

A label is a plan's first stages: its cost so far, round trip, Σ omega and paces. It is dropped where its best completion (by the path costs
of ``pace`` at several multipliers, each a valid bound) reaches the cutoff, and where another label of the same place is nowhere larger in
any of these figures: whatever completes the one completes the other, no worse. What is left at the end is the best plan of the window.
"""

from dataclasses import dataclass, replace

import numpy as np

from llmpq.plan.candidate import Floats
from llmpq.plan.pace import Node, Pace, Prices, Route
from llmpq.plan.parts import FIRST, LAST, LONE, MIDDLE, Part

# More labels than this are given up, and as many of one place are compared with each other.
MOST_LABELS, MOST_COMPARED = 6_000, 600
# Weights of a budget and shares of the round trip tried for completions besides the node's own.
_WEIGHTS, _SHARES = (0.6, 1.6, 8.0), (0.0, 1.0)
_ROUNDING = 1e-12
# Columns of a label's figures.
COST, TRIP, OMEGA, PREFILL, BUSY, DRAIN = range(6)


class TooManyError(Exception):
    """There are more labels than MOST_LABELS."""


@dataclass(frozen=True)
class Completion:
    """At one pair of multipliers: what labels and rows cost, and the least cost of what follows; all below ``room`` may win."""

    node: Node
    prices: Prices
    to_go: Floats
    room: float
    trip: float
    weight: float

    def of(self, figures: Floats) -> Floats:
        """Cost so far of labels [K, 6]."""
        found: Floats = figures[:, COST] + self.trip * figures[:, TRIP] + self.weight * figures[:, OMEGA]
        return found


@dataclass(frozen=True)
class _Labels:
    """``figures`` [K, 6], first class and layers placed [K], and for each the label before it and its row: indices into the history."""

    figures: Floats
    first: np.ndarray
    layer: np.ndarray
    trace: np.ndarray

    def take(self, rows: np.ndarray) -> "_Labels":
        return _Labels(self.figures[rows], self.first[rows], self.layer[rows], self.trace[rows])


class Labels:
    """Exact minimisation within windows of one problem."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.problem = pace, pace.problem

    def best(self, node: Node, cutoff: float) -> tuple[float, Route | None]:
        """(objective of the best plan of the window that is below ``cutoff``, that plan); (inf, None) where there is none.

        Raises TooManyError where the labels are too many to list.
        """
        self.node, self.cutoff = node, cutoff
        self.completions = self.completions_of(node)
        self.history: list[tuple[int, tuple[int, int, int], int]] = []
        self.ended: list[tuple[float, int]] = []
        self.waiting: dict[int, list[_Labels]] = {}
        self.start()
        for step in self.pace.routes.steps:
            for place_index, place in enumerate(step.source):
                waiting = self.waiting.pop(int(place), [])
                if waiting:
                    targets = {m: int(target[place_index]) for m, target in step.target.items()}
                    self.extend(step.of, _joined(waiting), targets)
        if not self.ended:
            return np.inf, None
        value, number = min(self.ended)
        return value, self.route(number)

    def completions_of(self, node: Node) -> list[Completion]:
        pace, found = self.pace, []
        pairs = [(node.trip_share, node.weight)]
        if pace.allowed is not None:
            pairs += [(node.trip_share, node.weight * factor) for factor in _WEIGHTS]
        pairs += [(share, node.weight) for share in _SHARES if share != node.trip_share]
        for share, weight in pairs:
            trial = replace(node, trip_share=share, weight=weight)
            prices = pace.prices(trial)
            trip = pace.decoding * pace.rounds * share
            own = 0.0 if pace.allowed is None else weight
            found.append(Completion(trial, prices, pace.to_go(prices), self.cutoff - pace.constant(trial), trip, own))
        return found

    def figures(self, part: Part, rows: np.ndarray, start: int | np.ndarray) -> Floats:
        """What rows add to a label [K, 6]; the last three are paces, to be maximised."""
        omega = self.pace.maker.damage[part.of][part.omega[rows], start] + part.end_omega[rows]
        decode = part.decode_largest[rows]
        cost = part.prefill_largest[rows] + self.pace.decoding * decode + self.problem.theta_ms * omega
        return np.stack([cost, decode, omega, part.prefill_rest[rows], part.busy[rows], part.decode_rest[rows]], axis=1)

    def floor(self) -> Floats:
        w = self.node.window
        return np.array([0.0, 0.0, 0.0, w.prefill_from, w.busy_from, self.pace.drain[self.node.batches] * w.busy_from])

    def added(self, before: Floats, more: Floats) -> Floats:
        return np.concatenate([before[:, :PREFILL] + more[:, :PREFILL], np.maximum(before[:, PREFILL:], more[:, PREFILL:])], axis=1)

    def hop(self, a: int, b: int) -> Floats:
        """What the link between two stages adds [1, 6]."""
        hop = self.pace.hops[self.node.batches][a, b]
        cost = hop.prefill[0] + self.pace.decoding * hop.decode[0]
        return np.array([[cost, hop.decode[0], 0.0, hop.prefill[1], hop.busy, hop.decode[1]]])

    def waits(self, figures: Floats) -> Floats:
        """What the paces of labels add to a bound beyond the window's lower ends."""
        w, weight = self.node.window, self.pace.busy_weight(self.node)
        found: Floats = figures[:, PREFILL] - w.prefill_from + weight * (figures[:, BUSY] - w.busy_from)
        return found

    def start(self) -> None:
        for (role, c, m), part in self.node.parts.items():
            rows = np.arange(len(part.size))
            if role == LONE:
                rows = rows[part.size == self.pace.layers]
                figures = self.added(np.broadcast_to(self.floor(), (len(rows), 6)), self.figures(part, rows, 0))
                self.end(figures, np.full(len(rows), -1), (role, c, m), rows, 0.0)
            elif role == FIRST:
                for (f, other), place in self.pace.routes.start.items():
                    if f == c and self.pace.follower(other) == m:
                        figures = self.added(np.broadcast_to(self.floor(), (len(rows), 6)), self.figures(part, rows, 0))
                        figures = self.added(figures, self.hop(f, other))
                        self.add(place, figures, f, part.size[rows], np.full(len(rows), -1), (role, c, m), rows)

    def add(
        self, place: int, figures: Floats, first: int, layer: np.ndarray, before: np.ndarray, key: tuple[int, int, int], rows: np.ndarray
    ) -> None:
        """Labels that arrive at a place, those alone that may win."""
        keep = np.ones(len(figures), dtype=bool)
        for number, completion in enumerate(self.completions):
            bound = completion.of(figures) + completion.to_go[place, first, layer]
            if number == 0:
                bound = bound + self.waits(figures)
            keep &= bound < completion.room
        chosen = np.flatnonzero(keep)
        if not len(chosen):
            return
        trace = np.arange(len(self.history), len(self.history) + len(chosen))
        self.history += [(int(before[k]), key, int(rows[k])) for k in chosen]
        if len(self.history) > MOST_LABELS:
            raise TooManyError
        self.waiting.setdefault(place, []).append(_Labels(figures[chosen], np.full(len(chosen), first), layer[chosen], trace))

    def extend(self, n: int, labels: _Labels, targets: dict[int, int]) -> None:
        """Give labels of one place their next stage, of class ``n``: a last one, or a middle one with each class to follow."""
        for first in np.unique(labels.first):
            for layer in np.unique(labels.layer[labels.first == first]):
                group = labels.take(np.flatnonzero((labels.first == first) & (labels.layer == layer)))
                group = group.take(undominated_labels(group.figures))
                self.extend_group(n, group, targets, int(first), int(layer))

    def extend_group(self, n: int, group: _Labels, targets: dict[int, int], first: int, layer: int) -> None:
        last = self.node.parts[LAST, n, -1]
        rows = np.flatnonzero(last.size == self.pace.layers - layer)
        if len(rows):
            which, row = (item.reshape(-1) for item in np.meshgrid(np.arange(len(group.trace)), rows, indexing="ij"))
            figures = self.added(group.figures[which], self.figures(last, row, layer))
            self.end(figures, group.trace[which], (LAST, n, -1), row, float(self.pace.back[self.node.batches][n, first]))
        own = self.completions[0]
        base = own.of(group.figures) + self.waits(group.figures)
        for m, target in targets.items():
            if target < 0:
                continue
            key = (MIDDLE, n, self.pace.follower(m))
            part = self.node.parts[key]
            rows = np.flatnonzero(part.size < self.pace.layers - layer)
            more = self.figures(part, rows, layer)
            rest = own.of(more) + own.prices.hop[n, m] + own.to_go[target, first, layer + part.size[rows]]
            which, place = np.nonzero(base[:, None] + rest[None, :] < own.room)
            if len(which):
                figures = self.added(self.added(group.figures[which], more[place]), self.hop(n, m))
                self.add(target, figures, first, layer + part.size[rows[place]], group.trace[which], key, rows[place])

    def end(self, figures: Floats, before: np.ndarray, key: tuple[int, int, int], rows: np.ndarray, return_ms: float) -> None:
        """Complete plans: their true objective."""
        pace = self.pace
        drained = pace.rounds * np.maximum(figures[:, BUSY], figures[:, TRIP] + return_ms) + figures[:, DRAIN]
        value = figures[:, COST] + figures[:, PREFILL] + pace.decoding * drained
        good = value < self.cutoff
        if pace.allowed is not None:
            good &= figures[:, OMEGA] <= pace.allowed
        if good.any():
            row = int(np.where(good, value, np.inf).argmin())
            self.history.append((int(before[row]), key, int(rows[row])))
            self.ended.append((float(value[row]), len(self.history) - 1))

    def route(self, number: int) -> Route:
        stages = []
        while number >= 0:
            number, key, row = self.history[number]
            stages.append((self.node.parts[key], row))
        return self.pace.priced(self.node.batches, tuple(reversed(stages)))


def _joined(labels: list[_Labels]) -> _Labels:
    return _Labels(*(np.concatenate([getattr(item, name) for item in labels]) for name in ("figures", "first", "layer", "trace")))


def undominated_labels(figures: Floats) -> np.ndarray:
    """Rows of ``figures`` [K, 6] such that no other row is nowhere larger; of equal rows one is kept."""
    order = np.lexsort(figures.T[::-1])
    if len(order) > MOST_COMPARED:
        return order
    limit = figures[order] * (1 + _ROUNDING)
    # Row k is dominated by an earlier one in the order (its cost is no larger).
    smaller = (figures[order][:, None, :] <= limit[None, :, :]).all(axis=-1)
    kept: np.ndarray = order[~np.triu(smaller, 1).any(axis=0)]
    return kept
