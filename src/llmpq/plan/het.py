"""One option for all layers on unequal devices, with the cut that serves the objective best: what a planner without mixed bits can do.

For each candidate (device order, micro-batches) and option the cut is found by descent: single layers move between any two stages, or
two at once, while the batch gets faster. A lower bound that looks at each phase on its own decides which candidates need not be tried.
"""

import functools
import itertools

import numpy as np

from llmpq.plan.baselines import ends_by_damage, fastest_decode_cut, most_layers
from llmpq.plan.candidate import Assignment, Candidate, Counts, within_budget
from llmpq.plan.pricing import totals_ms
from llmpq.plan.problem import Problem

# A move must gain more than rounding.
_GAIN = 1e-12


def het(problem: Problem, candidates: list[Candidate]) -> Assignment | None:
    """The best plan with one option for all layers, plans within the quality budget first; None where no option fits on any cut."""
    damage = [sum(problem.omega[option]) for option in problem.options]
    queue: list[tuple[bool, float, int, int, int]] = []
    for index, candidate in enumerate(candidates):
        for b in range(len(damage)):
            for end in ends_by_damage(problem, candidate):
                bound = lower_bound_ms(candidate, b, end, problem.layers)
                if np.isfinite(bound):
                    omega = damage[b] + float(candidate.end_omega[end])
                    queue.append((not within_budget(problem, omega), bound + problem.theta_ms * omega, index, b, end))
                    break
    best, worth = None, (True, np.inf)
    for over, bound, index, b, end in sorted(queue):
        if (over, bound) >= (worth[0], worth[1] * (1 - _GAIN)):
            break
        candidate = candidates[index]
        found = best_cut(candidate, b, end, problem.layers)
        value = np.inf if found is None else found[1] + problem.theta_ms * (damage[b] + float(candidate.end_omega[end]))
        if found is not None and (over, value) < worth:
            stages = tuple((problem.options[b],) * size for size in found[0])
            best, worth = Assignment(candidate.order, candidate.batches, stages, candidate.ends[end]), (over, value)
    return best


def lower_bound_ms(candidate: Candidate, b: int, end: int, layers: int) -> float:
    """A time in ms that no cut at option ``b`` beats; inf where the option is not offered everywhere or does not fit.

    Each term of the makespan on its own: sums with every layer on its fastest stage, maxima with layers in fractions spread so that all
    stages take equally long.
    """
    most = most_layers(candidate, b, end, layers) if candidate.available[:, b].all() else [0]
    if min(most) < 1 or sum(most) < layers:
        return np.inf
    first, later = candidate.times["prefill"], candidate.times["decode"]
    largest, rest = first.fixed_largest + first.end_largest[end], first.fixed_rest + first.end_rest[end]
    total = largest.sum() + first.link_largest.sum() + layers * first.layer_largest[:, b].min()
    total += max(_level(rest, first.layer_rest[:, b], layers), first.link_rest.max(initial=0.0))
    if candidate.new_tokens >= 2:
        largest, rest = later.fixed_largest + later.end_largest[end], later.fixed_rest + later.end_rest[end]
        once = largest.sum() + later.link_largest.sum() + layers * later.layer_largest[:, b].min()
        drain = max(_level(rest, later.layer_rest[:, b], layers), later.link_rest.max(initial=0.0))
        stage = _level(largest + rest, later.layer_largest[:, b] + later.layer_rest[:, b], layers)
        period = max(stage, (later.link_largest + later.link_rest).max(initial=0.0), once + candidate.return_ms)
        total += once + drain + (candidate.new_tokens - 2) * period
    return float(total)


def _level(fixed: np.ndarray, layer: np.ndarray, layers: int) -> float:
    """The least possible time of the slowest stage with fractional layers: max over j of fixed_j + n_j·layer_j, Σ n = layers."""
    floor = float(fixed.max())
    if (layer <= 0).any():
        return floor
    return max(floor, float((layers + (fixed / layer).sum()) / (1 / layer).sum()))


def best_cut(candidate: Candidate, b: int, end: int, layers: int) -> tuple[tuple[int, ...], float] | None:
    """Layers per stage with all of them at option ``b``, and the batch time in ms; None where they do not fit."""
    start = fastest_decode_cut(candidate, b, end, layers)
    if start is None:
        return None
    most = np.array(most_layers(candidate, b, end, layers))
    sizes, moves = np.array(start), _moves(candidate.stages)
    value = float(_times(candidate, b, end, sizes[None, :])[0])
    while len(moves):
        trials = sizes + moves
        trials = trials[((trials >= 1) & (trials <= most)).all(axis=1)]
        if not len(trials):
            break
        times = _times(candidate, b, end, trials)
        place = int(times.argmin())
        if times[place] >= value * (1 - _GAIN):
            break
        sizes, value = trials[place], float(times[place])
    return tuple(int(size) for size in sizes), value


@functools.cache
def _moves(stages: int) -> Counts:
    """One layer from a stage to another, two layers along one pair, and two such moves of different stages at once, [K, N]."""
    unit = np.eye(stages, dtype=np.int64)
    single = [unit[a] - unit[b] for a, b in itertools.permutations(range(stages), 2)]
    double = [2 * move for move in single] + [a + b for a, b in itertools.combinations(single, 2) if stages <= 6]
    found = np.array([move for move in single + double if move.any()], dtype=np.int64).reshape(-1, stages)
    return np.unique(found, axis=0)


def _times(candidate: Candidate, b: int, end: int, sizes: Counts) -> np.ndarray:
    counts = np.zeros((*sizes.shape, len(candidate.options)), dtype=np.int64)
    counts[:, :, b] = sizes
    return totals_ms(candidate, counts, end)
