"""Every way to fill one stage: the whole counts of layers per option that fit in a device's memory, with their times.

A stage's time and memory depend on its counts n[b] alone, and a device holds few layers, so they can be listed. A bound that takes one of
them per stage knows that layers are whole and memory is hard, which a linear relaxation does not.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmpq.plan.candidate import Candidate, Counts, Floats

# Above this the list costs more than it saves; the search then does without.
MOST_CONFIGS = 600_000


@dataclass(frozen=True)
class StageConfigs:
    """``counts`` [M, B] ordered by ``size`` (layers); those of k layers are rows ``first[k]`` to ``first[k + 1]``. ``bytes`` [M]."""

    counts: Counts
    size: Counts
    bytes: Counts
    first: Counts

    def kept(self, keep: npt.NDArray[np.bool_]) -> "StageConfigs":
        """Those marked in ``keep`` [M]."""
        return _indexed(self.counts[keep], self.size[keep], self.bytes[keep], len(self.first) - 2)


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
    return _indexed(counts[order], size[order], used[order], layers)


def _indexed(counts: Counts, size: Counts, used: Counts, layers: int) -> StageConfigs:
    return StageConfigs(counts, size, used, np.searchsorted(size, np.arange(layers + 2)))


@dataclass(frozen=True)
class ConfigTimes:
    """Times in ms [M] of the layers of each configuration, without what the stage does besides: see ``PhaseTimes``."""

    configs: StageConfigs
    prefill_largest: Floats
    prefill_rest: Floats
    decode_largest: Floats
    busy: Floats


def config_times(configs: StageConfigs, candidate: Candidate, stage: int) -> ConfigTimes:
    """Price ``configs`` on a stage of ``candidate``; ``busy`` is a whole decode round, the largest micro-batch and the rest."""
    first, later = candidate.times["prefill"], candidate.times["decode"]
    counts = configs.counts.astype(float)
    largest = counts @ later.layer_largest[stage]
    return ConfigTimes(
        configs,
        counts @ first.layer_largest[stage],
        counts @ first.layer_rest[stage],
        largest,
        largest + counts @ later.layer_rest[stage],
    )


def least_by_size(values: Floats, configs: StageConfigs) -> Floats:
    """The least of ``values`` [M] for each number of layers [L + 1]; inf where there is no configuration."""
    found = np.full(len(configs.first) - 1, np.inf)
    starts = configs.first[:-1]
    filled = np.flatnonzero(configs.first[1:] > starts)
    if len(filled):
        found[filled] = np.minimum.reduceat(values, starts[filled])
    return found
