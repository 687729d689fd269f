"""A whole plan near the optimum of a candidate's linear relaxation: where a local search does well to begin.

Layers differ in their sensitivity only, so any whole counts [N, B] that fit are a plan; the relaxation's counts are whole but for a few.
"""

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from llmpq.plan.candidate import Candidate, Counts, Floats
from llmpq.plan.pricing import fitting, totals_ms
from llmpq.plan.problem import Problem

SQUEEZES = 6  # layers that may take a smaller option to make room for one more


def rounded_counts(problem: Problem, candidate: Candidate, end: int) -> Counts | None:
    """Counts [N, B] with ``ends[end]``; None where the relaxation has no solution, or rounding finds none that fits."""
    fractional = _relaxed_counts(problem, candidate, end)
    if fractional is None:
        return None
    counts = np.floor(fractional + 1e-9).astype(np.int64)
    damage = np.array([np.mean(problem.omega[option]) for option in problem.options])
    stages, options = counts.shape
    units = np.eye(stages * options, dtype=np.int64).reshape(-1, stages, options)
    for _ in range(problem.layers - int(counts.sum())):
        trials = counts + units
        # An empty stage is mended first: what cannot hold a layer now never will.
        good = np.flatnonzero(_room(candidate, trials, end))
        if not len(good):  # one more layer fits only where another one takes a smaller option
            mended = _squeezed(candidate, trials, end)
            if mended is None:
                return None
            counts = mended
            continue
        empty = (trials[good].sum(axis=2) == 0).sum(axis=1)
        missing = (fractional - counts).reshape(-1)[good]
        time = totals_ms(candidate, trials[good], end) + problem.theta_ms * damage[good % options]
        place = np.lexsort((time, -np.round(missing, 6), empty))[0]
        counts = trials[good[place]]
    return counts if fitting(candidate, counts[None], end)[0] else None


def _squeezed(candidate: Candidate, trials: Counts, end: int) -> Counts | None:
    """Of ``trials`` with up to a few layers changed to the next smaller option of their stage until it fits: the fewest changes."""
    best: tuple[int, Counts] | None = None
    for trial in trials:
        if ((trial > 0) & ~candidate.available).any():
            continue
        counts, changes = trial.copy(), 0
        while not _room(candidate, counts[None], end)[0] and changes < SQUEEZES:
            over = (counts * candidate.layer_bytes).sum(axis=1) - (candidate.capacity - candidate.end_bytes[end])
            j = int(over.argmax())
            steps = [
                (int(candidate.layer_bytes[j, p] - candidate.layer_bytes[j, q]), p, q)
                for p in np.flatnonzero(counts[j])
                for q in np.flatnonzero(candidate.available[j])
                if candidate.layer_bytes[j, q] < candidate.layer_bytes[j, p]
            ]
            if not steps:
                break
            enough = [step for step in steps if step[0] >= over[j]]
            _, p, q = min(enough) if enough else max(steps)
            counts[j, p] -= 1
            counts[j, q] += 1
            changes += 1
        if _room(candidate, counts[None], end)[0] and (best is None or changes < best[0]):
            best = (changes, counts)
    return None if best is None else best[1]


def _room(candidate: Candidate, counts: Counts, end: int) -> np.ndarray:
    used = (counts * candidate.layer_bytes).sum(axis=2)
    found: np.ndarray = (used <= candidate.capacity - candidate.end_bytes[end]).all(axis=1)
    return found & ~((counts > 0) & ~candidate.available).any(axis=(1, 2))


def _relaxed_counts(problem: Problem, candidate: Candidate, end: int) -> Floats | None:
    """n [N, B] of the linear program over x[i, b], n[j, b] and the three maxima (prefill rest, decode rest, round)."""
    omega = np.array([problem.omega[option] for option in problem.options]).T
    (layers, options), stages = omega.shape, candidate.stages
    xs, ns = layers * options, stages * options
    first, later = candidate.times["prefill"], candidate.times["decode"]
    decoding, rounds = float(candidate.new_tokens >= 2), float(max(candidate.new_tokens - 2, 0))
    owner = np.repeat(np.eye(stages), options, axis=1)
    rest = [first.fixed_rest + first.end_rest[end], later.fixed_rest + later.end_rest[end]]
    largest = later.fixed_largest + later.end_largest[end]
    room = np.maximum(candidate.capacity - candidate.end_bytes[end], 0).astype(float)
    scale = np.maximum(room, 1.0)
    trip = largest.sum() + later.link_largest.sum() + candidate.return_ms
    blocks: list[tuple[Floats, int | None, Floats]] = [
        (owner * first.layer_rest.reshape(1, -1), 0, -rest[0]),
        (owner * later.layer_rest.reshape(1, -1), 1, -rest[1]),
        (owner * (later.layer_largest + later.layer_rest).reshape(1, -1), 2, -(largest + rest[1])),
        (later.layer_largest.reshape(1, -1), 2, np.array([-trip])),
        (owner * (candidate.layer_bytes / scale[:, None]).reshape(1, -1), None, room / scale),
        (-owner, None, -np.ones(stages)),
    ]
    left = np.concatenate([block for block, _, _ in blocks])
    maxima = np.array([np.eye(3)[k] if k is not None else np.zeros(3) for block, k, _ in blocks for _ in block])
    rows = sparse.hstack([sparse.csr_array((len(left), xs)), sparse.csr_array(left), sparse.csr_array(-maxima)], format="csr")
    limits = np.concatenate([limit for _, _, limit in blocks])
    if problem.quality_budget is not None:
        budget = sparse.csr_array(np.concatenate([omega.reshape(-1), np.zeros(ns + 3)])[None, :])
        rows = sparse.vstack([rows, budget], format="csr")
        limits = np.append(limits, problem.quality_budget - candidate.end_omega[end])
    each = sparse.hstack([sparse.kron(sparse.eye_array(layers), np.ones((1, options))), sparse.csr_array((layers, ns + 3))])
    by_layer, by_stage = (sparse.kron(np.ones((1, count)), sparse.eye_array(options)) for count in (layers, stages))
    equal = sparse.vstack([each, sparse.hstack([by_layer, -by_stage, sparse.csr_array((options, 3))])], format="csr")
    links = [first.link_rest.max(initial=0.0), later.link_rest.max(initial=0.0), (later.link_largest + later.link_rest).max(initial=0.0)]
    upper = np.where(candidate.available.reshape(-1), float(layers), 0.0)
    bounds = np.array([(0.0, 1.0)] * xs + [(0.0, top) for top in upper] + [(low, np.inf) for low in links])
    cost = np.concatenate([
        problem.theta_ms * omega.reshape(-1),
        (first.layer_largest + decoding * later.layer_largest).reshape(-1),
        [1.0, decoding, rounds],
    ])  # fmt: skip
    values = np.r_[np.ones(layers), np.zeros(options)]
    answer = linprog(cost, A_ub=rows, b_ub=limits, A_eq=equal, b_eq=values, bounds=bounds, method="highs")
    return answer.x[xs : xs + ns].reshape(stages, options) if answer.status == 0 else None
