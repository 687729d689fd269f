"""Every way to fill one stage: the whole counts of layers per option that fit in a device's memory, and what they damage.

A stage's time and memory depend on its counts n[b] alone, and a device holds few layers, so they can be listed. A bound that takes one of
them per stage knows that layers are whole and memory is hard, which a linear relaxation does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmpq.plan.candidate import Counts, Floats

# Above this the list costs more than it saves; the search then does without.
MOST_CONFIGS = 600_000


@dataclass(frozen=True)
class StageConfigs:
    """``counts`` [M, B] ordered by ``size`` (layers); those of k layers are rows ``first[k]`` to ``first[k + 1]``. ``bytes`` [M]."""

    counts: Counts
    size: Counts
    bytes: Counts
    first: Counts


def stage_configs(available: npt.NDArray[np.bool_], layer_bytes: Counts, capacity: int, layers: int) -> StageConfigs | None:
    """All counts of 1 to ``layers`` layers within ``capacity`` bytes; None where there are more than MOST_CONFIGS.

    ``available`` and ``layer_bytes`` are [B].
    """
    options = len(available)
    counts, size, used = np.zeros((1, options), dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for b in np.flatnonzero(available):
        room = layers - size
        if layer_bytes[b]:
            room = np.minimum(room, (capacity - used) // layer_bytes[b])
        repeats = np.maximum(room, -1) + 1
        if repeats.sum() > MOST_CONFIGS:
            return None
        source = np.repeat(np.arange(len(size)), repeats)
        taken = np.arange(len(source)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        counts, size, used = counts[source], size[source] + taken, used[source] + taken * layer_bytes[b]
        counts[:, b] = taken
    order = np.argsort(size, kind="stable")
    order = order[size[order] >= 1]
    counts, size, used = counts[order], size[order], used[order]
    return StageConfigs(counts, size, used, np.searchsorted(size, np.arange(layers + 2)))


def preferences(available: npt.NDArray[np.bool_], times: Sequence[Floats], omega: Floats) -> tuple[tuple[int, int], ...]:
    """Pairs (b, c) of options: c is nowhere slower than b and does no layer more damage, so b is taken only for want of memory.

    ``times`` are [B] each, ``omega`` [L, B]. Of options that are alike in everything the first is preferred.
    """
    rows = np.concatenate([np.array(times), omega])
    offered = np.flatnonzero(available).tolist()

    def better(b: int, c: int) -> bool:
        return bool(b != c and (rows[:, c] <= rows[:, b]).all() and (c < b or (rows[:, c] < rows[:, b]).any()))

    return tuple((b, c) for b in offered for c in offered if better(b, c))


def wanted_bytes(configs: StageConfigs, layer_bytes: Counts, preferred: Sequence[tuple[int, int]]) -> Floats:
    """From how many bytes of memory on [M] some layer of a configuration could change to a preferred option; inf where none would.

    So a configuration is worth a look only in memory of at least its ``bytes`` and less than this: some best plan uses such configurations
    alone, since a change to a preferred option that fits leaves every pace, sum and damage no larger, and, preference being a strict order,
    such changes come to an end.
    """
    more = np.full(len(configs.size), np.inf)
    for b, c in preferred:
        more = np.minimum(more, np.where(configs.counts[:, b] > 0, float(layer_bytes[c] - layer_bytes[b]), np.inf))
    return configs.bytes + more


def run_omega(configs: StageConfigs, omega: Floats, rows: Counts) -> Floats:
    """Least Σ omega [len(rows), L + 1] when the layers from i on take the counts of a row; inf where that goes beyond the last layer.

    Exact, by dynamic programming over all counts: the first layer of a run takes one of its options, the rest of the run what is left.
    All that is left of a listed configuration fits too, so it is listed.
    """
    layers, options = omega.shape
    found = np.full((len(rows), layers + 1), np.inf)
    digits = (layers + 1) ** np.arange(options)
    # Of the runs one layer shorter: their counts as numbers, ascending, and their Σ omega by first layer.
    shorter, least = np.zeros(1, dtype=np.int64), np.zeros((1, layers + 1))
    for size in range(1, int(configs.size.max(initial=0)) + 1):
        part = slice(configs.first[size], configs.first[size + 1])
        counts = configs.counts[part]
        number = counts @ digits
        value = np.full((len(counts), layers - size + 1), np.inf)
        for b in range(options):
            has = np.flatnonzero(counts[:, b])
            rest = np.searchsorted(shorter, number[has] - digits[b])
            value[has] = np.minimum(value[has], omega[: layers - size + 1, b] + least[rest, 1:])
        wanted = np.flatnonzero((rows >= part.start) & (rows < part.stop))
        found[wanted, : layers - size + 1] = value[rows[wanted] - part.start]
        order = np.argsort(number)
        shorter, least = number[order], value[order]
    return found
