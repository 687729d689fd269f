"""Many plans of one candidate priced at once: what the local searches look at before they move."""

import numpy as np

from llmpq.plan.candidate import Candidate, Counts, Floats


def totals_ms(candidate: Candidate, counts: Counts, end: int, sharpness: float = np.inf) -> Floats:
    """Batch time in ms [K] of ``counts`` [K, N, B] (layers of each stage at each option) with ``ends[end]``.

    Equals ``Candidate.makespan`` of each. A finite ``sharpness`` p puts the p-norm in place of every maximum: where several stages are
    equally slow, relieving one of them then counts for something.
    """
    first_pass, slowest, _ = _passes(candidate, counts, end, "prefill", sharpness)
    total = first_pass + slowest
    if candidate.new_tokens < 2:
        return total
    once, drain, busiest = _passes(candidate, counts, end, "decode", sharpness)
    period = np.maximum(busiest, once + candidate.return_ms)
    return total + (candidate.new_tokens - 2) * period + once + drain


def _passes(candidate: Candidate, counts: Counts, end: int, phase: str, sharpness: float) -> tuple[Floats, Floats, Floats]:
    """Per plan: the largest micro-batch through the pipeline, the slowest resource's rest, the busiest resource's all; ms [K]."""
    times = candidate.times[phase]
    largest = times.fixed_largest + times.end_largest[end] + (counts * times.layer_largest).sum(axis=2)
    rest = times.fixed_rest + times.end_rest[end] + (counts * times.layer_rest).sum(axis=2)
    once = largest.sum(axis=1) + times.link_largest.sum()
    slowest = np.maximum(_largest(rest, sharpness), times.link_rest.max(initial=0.0))
    busiest = np.maximum(_largest(largest + rest, sharpness), (times.link_largest + times.link_rest).max(initial=0.0))
    return once, slowest, busiest


def _largest(values: Floats, sharpness: float) -> Floats:
    """The maximum of each row [K], or its p-norm."""
    top: Floats = values.max(axis=1)
    if np.isinf(sharpness):
        return top
    scale = np.maximum(top, 1e-300)
    found: Floats = scale * ((values / scale[:, None]) ** sharpness).sum(axis=1) ** (1 / sharpness)
    return found


def fitting(candidate: Candidate, counts: Counts, end: int) -> np.ndarray:
    """Which of ``counts`` [K, N, B] keep every stage's memory, hold at least one layer per stage and use offered options only."""
    used = (counts * candidate.layer_bytes).sum(axis=2)
    whole = (counts >= 0).all(axis=(1, 2)) & (counts.sum(axis=2) >= 1).all(axis=1)
    offered = ~((counts > 0) & ~candidate.available).any(axis=(1, 2))
    found: np.ndarray = (used <= candidate.capacity - candidate.end_bytes[end]).all(axis=1) & whole & offered
    return found
