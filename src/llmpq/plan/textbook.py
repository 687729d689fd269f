"""The same program in its textbook form: one binary per layer, stage and option, contiguity by pairs of neighbouring layers.

This is what is usually published and solved. It is kept for comparison with the counts form of ``milp``, from which it borrows
everything but the decisions: here n[j, b] is no variable but the sum of the layers' binaries.
"""

from collections.abc import Callable

import pyomo.environ as pyo

from llmpq.plan.candidate import Candidate
from llmpq.plan.milp import (
    Model,
    declare,
    decode_link,
    decode_stage,
    memory,
    one_end,
    prefill_link,
    prefill_stage,
    quality_budget,
    round_link,
    round_stage,
    round_trip,
    set_objective,
    stage_not_empty,
)
from llmpq.plan.problem import Problem


def declare_textbook(problem: Problem, candidate: Candidate) -> Model:
    """Binaries z[i, j, b] alone."""
    m = declare(problem, candidate)
    m.del_component(m.c)
    m.del_component(m.n)
    m.z.domain = pyo.Binary
    m.n = pyo.Expression(m.offers, rule=lambda m, j, b: sum(m.z[i, j, b] for i in m.layers if (i, j, b) in m.places))
    return m


def one_place(m: Model) -> None:
    """Every layer lies on one stage at one option."""
    m.one_place = pyo.Constraint(m.layers, rule=lambda m, i: sum(m.z[k, j, b] for k, j, b in m.places if k == i) == 1)


def pairwise_contiguity(m: Model) -> None:
    """Layer i on stage j excludes layer i−1 on any later stage k: x[i, j] + x[i−1, k] <= 1."""

    def rule(m: Model, i: int, j: int, k: int) -> object:
        here = [m.z[i, j, b] for s, b in m.offers if s == j and (i, j, b) in m.places]
        later = [m.z[i - 1, k, b] for s, b in m.offers if s == k and (i - 1, k, b) in m.places] if i > 0 else []
        return sum(here) + sum(later) <= 1 if here and later and k > j else pyo.Constraint.Skip

    m.pairwise_contiguity = pyo.Constraint(m.layers, m.stages, m.stages, rule=rule)


TEXTBOOK_CONSTRAINTS: tuple[Callable[[Model], None], ...] = (
    one_place,
    pairwise_contiguity,
    stage_not_empty,
    one_end,
    memory,
    prefill_stage,
    prefill_link,
    decode_stage,
    decode_link,
    round_stage,
    round_link,
    round_trip,
    quality_budget,
)


def build_textbook_model(problem: Problem, candidate: Candidate, *, cutoff_ms: float | None = None) -> Model:
    """The whole program, with the same objective and meaning as ``milp.build_model``."""
    m = declare_textbook(problem, candidate)
    for constrain in TEXTBOOK_CONSTRAINTS:
        constrain(m)
    set_objective(m, cutoff_ms)
    return m
