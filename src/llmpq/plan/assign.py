"""Exact re-assignment of options to the layers of a stage, once it is known how many layers take each option."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from llmpq.plan.candidate import Counts
from llmpq.plan.problem import Problem


def assign_stage(omega: npt.ArrayLike, counts: Sequence[int]) -> list[int]:
    """The option (index) of each layer with the least Σ omega, ``counts[b]`` layers taking option b.

    ``omega`` is [layers][options]; a transportation problem, solved as an assignment of layers to Σ counts seats (Hungarian method).
    """
    seats = np.repeat(np.arange(len(counts)), counts)
    cost = np.asarray(omega, dtype=float)[:, seats]
    rows, columns = linear_sum_assignment(cost)
    chosen = np.empty(len(seats), dtype=int)
    chosen[rows] = seats[columns]
    return [int(option) for option in chosen]


def assign(problem: Problem, counts: Counts) -> tuple[tuple[str, ...], ...]:
    """Options per stage and layer with the least Σ omega for ``counts`` [N, B] (stages are contiguous, in order)."""
    omega = np.array([problem.omega[option] for option in problem.options]).T
    stages = []
    first = 0
    for row in counts:
        size = int(row.sum())
        chosen = assign_stage(omega[first : first + size], row.tolist())
        stages.append(tuple(problem.options[option] for option in chosen))
        first += size
    return tuple(stages)
