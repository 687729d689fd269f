"""Bounds within a window of paces: how slow the slowest stage may be, in prefill and in a decode round.

A plan's objective is P + (n − 2)·R + D and sums over its stages, with P, R and D maxima over the stages. Fix a window for P and for R, and
the maxima become constants from below (the window's lower ends) and limits on each stage from above (its upper ends). What is left is a
sum over the stages of the cheapest listed configuration (``stage_configs``) within the limits, coupled by the number of layers alone: a
shortest path, solved exactly. Only Σ omega is relaxed, by prices of options: every stage is paid pi[b] for a layer at option b, and every
layer buys the option it likes best. Any prices give a valid bound.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llmpq.plan.candidate import Candidate, Counts, Floats
from llmpq.plan.stage_configs import ConfigTimes, least_by_size

# Limits are compared with sums of doubles: a plan must not fall out of a window by rounding.
_SLACK = 1e-9


@dataclass(frozen=True)
class Window:
    """Closed ranges in ms: prefill pace P = max of the rests, decode pace R = max of a stage's or link's whole round."""

    prefill_from: float
    prefill_to: float
    round_from: float
    round_to: float


@dataclass(frozen=True)
class Stage:
    """A stage's configurations within its memory and what it does besides its layers, in ms; ``may_be_empty`` for an unknown subset."""

    times: ConfigTimes
    prefill_largest: float
    prefill_rest: float
    decode_largest: float
    busy: float
    may_be_empty: bool = False


@dataclass(frozen=True)
class Prices:
    """Prices of options [B] (or, with the stages in order, [N, B]); ``weight`` of Σ omega, and ``offset`` that a budget gives back."""

    options: Floats
    weight: float
    offset: float = 0.0


@dataclass(frozen=True)
class Case:
    """What a window's bound is computed for: one candidate with its order, or all orders of some devices at once.

    ``stages`` in order (an order-free case: in any); links enter by their sums and maxima.
    """

    stages: tuple[Stage, ...]
    layers: int
    rounds: float
    decoding: float
    drain_share: float
    prefill_links: float
    decode_links: float
    prefill_link_rest: float
    link_busy: float
    return_ms: float
    end_omega: float = 0.0

    def tightened(self, window: Window) -> Window:
        """No pace is below that of the busiest link or of a stage without layers."""
        prefill, busy = self.prefill_link_rest, self.link_busy
        for stage in self.stages:
            if not stage.may_be_empty:
                prefill, busy = max(prefill, stage.prefill_rest), max(busy, stage.busy)
        return replace(window, prefill_from=max(window.prefill_from, prefill), round_from=max(window.round_from, busy))

    def constant(self, window: Window, trip_share: float) -> float:
        """All of the objective that no configuration changes, with the round priced ``trip_share`` by the round trip."""
        trip = trip_share * (self.decode_links + self.return_ms)
        decode = self.rounds * ((1 - trip_share) * window.round_from + trip) + self.decode_links + self.drain_share * window.round_from
        return self.prefill_links + window.prefill_from + self.decoding * decode

    def width_ms(self, window: Window) -> tuple[float, float]:
        """How much of the objective the window leaves open, by prefill and by decode pace."""
        weight = self.decoding * (self.rounds + self.drain_share)
        return window.prefill_to - window.prefill_from, weight * (window.round_to - window.round_from)


def drain_share(candidate: Candidate) -> float:
    """The least share of a stage's or link's round that comes after its largest micro-batch: D >= share · R."""
    later = candidate.times["decode"]
    rest = np.concatenate([later.layer_rest[candidate.available], later.fixed_rest, later.link_rest])
    largest = np.concatenate([later.layer_largest[candidate.available], later.fixed_largest, later.link_largest])
    whole = rest + largest
    return float((rest[whole > 0] / whole[whole > 0]).min(initial=1.0)) if (whole > 0).any() else 0.0


def stage_costs(case: Case, stage: Stage, window: Window, trip_share: float, prices: Floats) -> tuple[Floats, Floats]:
    """(cost of each configuration [M], inf outside the window; the least per number of layers [L + 1])."""
    times, weight = stage.times, case.decoding * (1 + case.rounds * trip_share)
    values = times.prefill_largest + weight * times.decode_largest - times.configs.counts @ prices
    slow = times.prefill_rest > (window.prefill_to - stage.prefill_rest) * (1 + _SLACK)
    if case.decoding:
        slow |= times.busy > (window.round_to - stage.busy) * (1 + _SLACK)
    values = np.where(slow, np.inf, values + stage.prefill_largest + weight * stage.decode_largest)
    least = least_by_size(values, times.configs)
    if stage.may_be_empty:
        least[0] = 0.0
    return values, least


def layers_share(omega: Floats, weight: float, prices: Floats) -> Floats:
    """What each layer [L] adds when it takes the option it likes best: min over b of weight · omega[i, b] + pi[b]."""
    return (weight * omega + prices).min(axis=1)


@dataclass(frozen=True)
class Answer:
    """A bound (inf: no plan in the window), and how it grows with each price: ``options`` as in Prices, ``weight`` for the budget's."""

    bound: float
    options: Floats
    weight: float = 0.0


def order_free_bound(case: Case, window: Window, trip_share: float, prices: Prices, omega: Floats, budget: float) -> Answer:
    """Lower bound over all plans of the case within the window, whatever the order of its stages."""
    nothing = Answer(np.inf, np.zeros(omega.shape[1]))
    window = case.tightened(window)
    if window.prefill_from > window.prefill_to * (1 + _SLACK) or window.round_from > window.round_to * (1 + _SLACK):
        return nothing
    known: dict[int, tuple[Floats, Floats]] = {}
    totals = [np.where(np.arange(case.layers + 1) == 0, 0.0, np.inf)]
    for stage in case.stages:
        if id(stage) not in known:
            known[id(stage)] = stage_costs(case, stage, window, trip_share, prices.options)
        totals.append(_fewest(totals[-1], known[id(stage)][1]))
    if not np.isfinite(totals[-1][-1]):
        return nothing
    gradient, left = np.zeros(omega.shape[1]), case.layers
    for stage, before in zip(reversed(case.stages), reversed(totals[:-1]), strict=True):
        values, least = known[id(stage)]
        size = int((before[left::-1] + least[: left + 1]).argmin())
        if size:
            configs = stage.times.configs
            rows = slice(configs.first[size], configs.first[size + 1])
            gradient -= configs.counts[rows][values[rows].argmin()]
        left -= size
    bought = prices.weight * omega + prices.options
    chosen = bought.argmin(axis=1)
    gradient += np.bincount(chosen, minlength=omega.shape[1])
    each = np.arange(len(omega))
    bound = float(totals[-1][-1] + case.constant(window, trip_share) + bought[each, chosen].sum())
    bound += prices.weight * case.end_omega - prices.offset
    return Answer(bound, gradient, float(omega[each, chosen].sum()) + case.end_omega - budget)


def _fewest(total: Floats, least: Floats) -> Floats:
    """Min-plus convolution: the cheapest way to place k layers [L + 1] on the stages so far and one more."""
    possible = np.flatnonzero(least < np.inf)
    if not len(possible):
        return np.full(len(total), np.inf)
    low, high = int(possible[0]), int(possible[-1]) + 1
    padded = np.concatenate([np.full(len(total), np.inf), total])
    return (padded[_shifts(len(total))[:, low:high]] + least[low:high]).min(axis=1)


@functools.cache
def _shifts(size: int) -> npt.NDArray[np.intp]:
    """Places of total[k − s] in ``size`` infinities followed by total, for every k and s."""
    return np.arange(size)[:, None] - np.arange(size)[None, :] + size


@dataclass(frozen=True)
class Path:
    """The cheapest cut within a window: ``cut`` [N + 1] layer boundaries, ``counts`` [N, B], what its layers ``chosen`` [L] would take."""

    bound: float
    cut: list[int]
    counts: Counts
    chosen: Counts

    def answer(self, omega: Floats, budget: float) -> Answer:
        stages, options = self.counts.shape
        bought = np.zeros((stages, options))
        np.add.at(bought, (np.repeat(np.arange(stages), np.diff(self.cut)), self.chosen), 1)
        return Answer(self.bound, bought - self.counts, float(omega[np.arange(len(omega)), self.chosen].sum()) - budget)


def ordered_bound(case: Case, window: Window, trip_share: float, prices: Prices, omega: Floats) -> Path | None:
    """The bound with the stages in order and prices [N, B] for each stage; None where no plan lies in the window."""
    window = case.tightened(window)
    if window.prefill_from > window.prefill_to * (1 + _SLACK) or window.round_from > window.round_to * (1 + _SLACK):
        return None
    length, tables, values = case.layers + 1, [], []
    behind = np.full(length, np.inf)
    behind[0] = 0.0
    gap = np.arange(length)[None, :] - np.arange(length)[:, None]
    reach = [behind]
    for stage, price in zip(case.stages, prices.options, strict=True):
        value, least = stage_costs(case, stage, window, trip_share, price)
        share = np.concatenate([[0.0], np.cumsum(layers_share(omega, prices.weight, price))])
        table = np.where(gap > 0, least[np.maximum(gap, 0)] + share[None, :] - share[:, None], np.inf)
        tables.append(table)
        values.append(value)
        reach.append((reach[-1][:, None] + table).min(axis=0))
    if not np.isfinite(reach[-1][-1]):
        return None
    cut = [case.layers]
    for j in range(len(tables) - 1, -1, -1):
        cut.append(int((reach[j] + tables[j][:, cut[-1]]).argmin()))
    cut.reverse()
    counts, chosen = [], []
    for j, (stage, value) in enumerate(zip(case.stages, values, strict=True)):
        configs, size = stage.times.configs, cut[j + 1] - cut[j]
        rows = slice(configs.first[size], configs.first[size + 1])
        counts.append(configs.counts[rows][value[rows].argmin()])
        chosen.append((prices.weight * omega[cut[j] : cut[j + 1]] + prices.options[j]).argmin(axis=1))
    bound = float(reach[-1][-1]) + case.constant(window, trip_share) + prices.weight * case.end_omega - prices.offset
    return Path(bound, cut, np.array(counts), np.concatenate(chosen))
