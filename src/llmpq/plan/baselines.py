"""The planners llmpq is compared with, each given its own best micro-batches and device order, so that a gain is not the search's.

- uniform: layers split evenly, one weight width for all, the highest that fits;
- pipeedge: the same descent over one width, with the contiguous cut that makes the slowest decode stage fastest; blind to prefill;
- adabits: least Σ omega under memory and contiguity, blind to time (``least_omega``); among cuts of equal Σ omega the one with the
  fastest slowest decode stage;
- even: layers split evenly, one option for all, whichever of those that fit is best (``het`` is the same with the best cut).

"Own best" means: the rule above fixes cut and options for every candidate (device order, micro-batches), and of these plans the one
with the best objective of the problem is taken, plans within the quality budget first. Where several options have the same width
(8-bit weight-only and W8A8), the better one is taken by the same measure. Embedding and head take, but for adabits, the end
options of least sensitivity (then most bits) that fit beside the layers: the layers' width goes first.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from llmpq.plan.assign import assign
from llmpq.plan.bound import Relaxation
from llmpq.plan.candidate import Assignment, Candidate, objective_ms, within_budget
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.microbatch import balanced
from llmpq.plan.pricing import totals_ms
from llmpq.plan.problem import Problem

# A bound, a sum of doubles, must be above by more than this (relative) to rule a plan out.
_ROUNDING = 1e-9

Cut = Callable[[Candidate, int, int, int], tuple[int, ...] | None]


def uniform(problem: Problem, candidates: list[Candidate]) -> Assignment | None:
    """Even split, one width; None where no width fits on any even split."""
    return highest_width(problem, candidates, even_cut)


def pipeedge(problem: Problem, candidates: list[Candidate]) -> Assignment | None:
    """One width, the cut with the least time of the slowest decode stage; None where no width fits."""
    return highest_width(problem, candidates, fastest_decode_cut)


def adabits(problem: Problem, candidates: list[Candidate]) -> Assignment | None:
    """Least Σ omega of each candidate; None where no candidate fits at the lowest options."""
    tables = LeastOmega(problem, candidates)
    relaxation = Relaxation(problem)
    bounds = [relaxation.evaluate(candidate, relaxation.trivial(candidate)) for candidate in candidates]
    best, worth = None, (True, np.inf, ())
    for place in np.argsort(bounds, kind="stable").tolist():
        candidate = candidates[place]
        # No plan of the candidate is as good as the best so far: its bound is above, or its least damage breaks the budget.
        if not worth[0] and bounds[place] > worth[1] * (1 + _ROUNDING):
            break
        least = tables.least(candidate)
        within = within_budget(problem, least)
        found = None if not np.isfinite(least) or (not within and not worth[0]) else tables.best(candidate)
        if found is None:
            continue
        counts, end = found
        value = float(totals_ms(candidate, counts[None], end)[0]) + problem.theta_ms * least
        if (not within, value * (1 - _ROUNDING)) > worth[:2]:
            continue
        plan = assign_counts(problem, candidate, counts, end)
        own = (not within_budget(problem, plan.omega_sum(problem)), objective_ms(problem, candidate, plan), plan.key())
        best, worth = (plan, own) if best is None or own < worth else (best, worth)
    return best


def even(problem: Problem, candidates: list[Candidate]) -> Assignment | None:
    """Even split, the best single option that fits; None where none does."""
    return best_plan(problem, plans_at(problem, candidates, range(len(problem.options)), even_cut))


def assign_counts(problem: Problem, candidate: Candidate, counts: np.ndarray, end: int) -> Assignment:
    return Assignment(candidate.order, candidate.batches, assign(problem, counts), candidate.ends[end])


def ends_by_damage(problem: Problem, candidate: Candidate) -> list[int]:
    """Numbers of the candidate's ends, least Σ omega first, then most bits."""

    def damage(end: int) -> tuple[float, int]:
        return float(candidate.end_omega[end]), -sum(problem.end_bits[option] for option in candidate.ends[end])

    return sorted(range(len(candidate.ends)), key=damage)


def best_plan(problem: Problem, plans: Iterable[tuple[Candidate, Assignment]]) -> Assignment | None:
    """The plan with the best objective, plans within the quality budget first; ties are broken in a fixed way. None without plans."""

    def worth(item: tuple[Candidate, Assignment]) -> tuple[bool, float, tuple]:
        candidate, plan = item
        return (not within_budget(problem, plan.omega_sum(problem)), objective_ms(problem, candidate, plan), plan.key())

    found = min(plans, key=worth, default=None)
    return None if found is None else found[1]


def widths(problem: Problem) -> list[list[int]]:
    """Options (indices) by weight bits, the highest width first."""
    found = sorted(set(problem.bits.values()), reverse=True)
    return [[b for b, option in enumerate(problem.options) if problem.bits[option] == bits] for bits in found]


def highest_width(problem: Problem, candidates: Sequence[Candidate], cut: Cut) -> Assignment | None:
    """The best plan at the highest width at which ``cut`` fits any candidate; None where none does."""
    found = (best_plan(problem, plans_at(problem, candidates, options, cut)) for options in widths(problem))
    return next((plan for plan in found if plan is not None), None)


def plans_at(problem: Problem, candidates: Sequence[Candidate], options: Iterable[int], cut: Cut) -> Iterator[tuple[Candidate, Assignment]]:
    """The plans that fit with all layers at one of ``options``, cut by ``cut``."""
    for candidate, b in itertools.product(candidates, options):
        if not candidate.available[:, b].all():
            continue
        for end in ends_by_damage(problem, candidate):
            sizes = cut(candidate, b, end, problem.layers)
            if sizes is not None:
                stages = tuple((problem.options[b],) * size for size in sizes)
                yield candidate, Assignment(candidate.order, candidate.batches, stages, candidate.ends[end])
                break


def most_layers(candidate: Candidate, b: int, end: int, layers: int) -> list[int]:
    """How many layers at option ``b`` fit on each stage beside ``ends[end]``; -1 where not even those fit."""
    rooms = (candidate.capacity - candidate.end_bytes[end]).tolist()
    return [
        -1 if room < 0 else min(layers, room // size) if size else layers
        for room, size in zip(rooms, candidate.layer_bytes[:, b].tolist(), strict=True)
    ]


def even_cut(candidate: Candidate, b: int, end: int, layers: int) -> tuple[int, ...] | None:
    sizes = balanced(layers, candidate.stages)
    return sizes if all(size <= most for size, most in zip(sizes, most_layers(candidate, b, end, layers), strict=True)) else None


def fastest_decode_cut(candidate: Candidate, b: int, end: int, layers: int) -> tuple[int, ...] | None:
    """Layers go one by one to the stage whose decode time grows to the least: this minimises the slowest stage under the limits."""
    times, most = candidate.times["decode"], most_layers(candidate, b, end, layers)
    fixed, layer = (times.fixed_largest + times.end_largest[end]).tolist(), times.layer_largest[:, b].tolist()
    if min(most) < 1 or sum(most) < layers:
        return None
    sizes = [1] * candidate.stages
    queue = [(fixed[j] + 2 * layer[j], j) for j in range(candidate.stages) if most[j] > 1]
    heapq.heapify(queue)
    for _ in range(layers - candidate.stages):
        after, j = heapq.heappop(queue)
        sizes[j] += 1
        if sizes[j] < most[j]:
            heapq.heappush(queue, (after + layer[j], j))
    return tuple(sizes)
