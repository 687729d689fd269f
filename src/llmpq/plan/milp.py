"""The integer program of one candidate: contiguous cut and weight options for a fixed device order and fixed micro-batches.

Layers differ in their sensitivity only, so a stage's time and memory depend on how MANY of its layers take which option. Decisions:

- ``c[i, j]`` binary: layer i lies on stage j or an earlier one (j < N-1); monotone in i and in j, which is contiguity;
- ``n[j, b]`` integer: layers of stage j at option b; times and memory are written on n alone;
- ``z[i, j, b]`` in [0, 1]: layer i on stage j at option b; the sensitivity is priced on z. With c and n fixed, z is a transportation
  problem per stage, so it need not be declared binary: ``assign`` makes it integral at the end without loss;
- ``end[k]`` binary: embedding (first stage) and head (last stage) take the k-th pair of end options; absent where there is one pair only.

Times are ms, memory is in fractions of a stage's capacity (for the solver's sake). This file is the definition; ``check`` judges plans
from the mathematics without it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyomo.environ as pyo

from llmpq.plan.candidate import Candidate
from llmpq.plan.problem import Problem

Model = Any  # pyomo's ConcreteModel: its components are attributes made at run time


def declare(problem: Problem, candidate: Candidate) -> Model:
    """Sets, variables and coefficients, without any constraint."""
    m = pyo.ConcreteModel(name="counts")
    m.problem, m.candidate = _Held(problem), _Held(candidate)
    stages, layers = candidate.stages, problem.layers
    pairs = [(j, b) for j in range(stages) for b in range(len(problem.options)) if candidate.available[j, b]]
    m.L, m.N, m.shrink = layers, stages, 0.0
    m.layers, m.stages, m.cuts = pyo.RangeSet(0, layers - 1), pyo.RangeSet(0, stages - 1), pyo.RangeSet(0, stages - 2)
    m.offers = pyo.Set(initialize=pairs, dimen=2)
    m.places = pyo.Set(initialize=[(i, j, b) for i in range(layers) for j, b in pairs if j <= i <= layers - stages + j], dimen=3)
    m.c = pyo.Var(m.layers, m.cuts, domain=pyo.Binary)
    m.n = pyo.Var(m.offers, domain=pyo.NonNegativeIntegers, bounds=(0, layers - stages + 1))
    m.z = pyo.Var(m.places, bounds=(0, 1))
    m.ends = pyo.RangeSet(0, len(candidate.ends) - 1)
    m.end = pyo.Var(m.ends if len(candidate.ends) > 1 else [], domain=pyo.Binary)
    m.prefill_rest = pyo.Var(domain=pyo.NonNegativeReals)
    m.decode_rest = pyo.Var(domain=pyo.NonNegativeReals)
    m.round = pyo.Var(domain=pyo.NonNegativeReals)
    return m


class _Held:
    """Keeps plain Python data on a model out of Pyomo's sight."""

    def __init__(self, value: Any) -> None:
        self.value = value


def placed(m: Model, i: int, j: int) -> Any:
    """1 if layer i lies on stage j or earlier: nothing before stage 0, everything by the last stage."""
    if j < 0:
        return 0
    return 1 if j == m.N - 1 else m.c[i, j]


def stage_ms(m: Model, phase: str, j: int, part: str) -> Any:
    """Time of stage j in ``phase`` for the ``largest`` micro-batch or the ``rest`` of them."""
    times = m.candidate.value.times[phase]
    if part == "largest":
        layer, fixed, ends = times.layer_largest, times.fixed_largest, times.end_largest
    else:
        layer, fixed, ends = times.layer_rest, times.fixed_rest, times.end_rest
    return float(fixed[j]) + sum(float(layer[k, b]) * m.n[k, b] for k, b in m.offers if k == j) + of_ends(m, ends[:, j])


def of_ends(m: Model, values: Any) -> Any:
    """Σ values[k] · end[k]: what the chosen pair of end options adds. With one pair only that is ``values[0]``."""
    if len(m.end) == 0:
        return float(values[0])
    return sum(float(values[k]) * m.end[k] for k in m.ends if values[k])


def links_ms(m: Model, phase: str, part: str) -> list[float]:
    times = m.candidate.value.times[phase]
    values = {"largest": times.link_largest, "rest": times.link_rest, "all": times.link_largest + times.link_rest}[part]
    return [float(value) for value in values]


def omega_sum(m: Model) -> Any:
    problem = m.problem.value
    rows = [problem.omega[option] for option in problem.options]
    return sum(rows[b][i] * m.z[i, j, b] for i, j, b in m.places if rows[b][i]) + of_ends(m, m.candidate.value.end_omega)


def pass_ms(m: Model, phase: str) -> Any:
    """The largest micro-batch through the whole pipeline: Σ_j t_j + Σ_j c_j."""
    return sum(stage_ms(m, phase, j, "largest") for j in m.stages) + sum(links_ms(m, phase, "largest"))


def time_ms(m: Model) -> Any:
    """T_p + T_d."""
    total = pass_ms(m, "prefill") + m.prefill_rest
    tokens = m.candidate.value.new_tokens
    return total + (tokens - 2) * m.round + pass_ms(m, "decode") + m.decode_rest if tokens >= 2 else total


def row(comparison: Any) -> Any:
    """A comparison whose terms have all vanished is a truth value; Pyomo wants it in words."""
    if isinstance(comparison, (bool, np.bool_)):
        return pyo.Constraint.Feasible if comparison else pyo.Constraint.Infeasible
    return comparison


# --- constraints: one function each; CONSTRAINTS lists them all (each has a golden file in tests/lp) ---


def contiguous_layers(m: Model) -> None:
    """If layer i+1 lies on stage j or earlier, so does layer i."""
    m.contiguous_layers = pyo.Constraint(
        m.layers, m.cuts, rule=lambda m, i, j: m.c[i, j] >= m.c[i + 1, j] if i < m.L - 1 else pyo.Constraint.Skip
    )


def contiguous_stages(m: Model) -> None:
    """On stage j or earlier is also on stage j+1 or earlier."""
    m.contiguous_stages = pyo.Constraint(
        m.layers, m.cuts, rule=lambda m, i, j: m.c[i, j] <= m.c[i, j + 1] if j < m.N - 2 else pyo.Constraint.Skip
    )


def stage_not_empty(m: Model) -> None:
    """Every stage of the candidate holds at least one layer."""
    m.stage_not_empty = pyo.Constraint(m.stages, rule=lambda m, j: sum(m.n[k, b] for k, b in m.offers if k == j) >= 1)


def one_option(m: Model) -> None:
    """A layer takes one option on the stage it lies on, and none elsewhere."""

    def rule(m: Model, i: int, j: int) -> Any:
        terms = [m.z[i, j, b] for k, b in m.offers if k == j and (i, j, b) in m.places]
        here = placed(m, i, j) - placed(m, i, j - 1)
        return row(sum(terms) == here)

    m.one_option = pyo.Constraint(m.layers, m.stages, rule=rule)


def option_count(m: Model) -> None:
    """n[j, b] counts the layers of stage j at option b."""
    m.option_count = pyo.Constraint(
        m.offers, rule=lambda m, j, b: sum(m.z[i, j, b] for i in m.layers if (i, j, b) in m.places) == m.n[j, b]
    )


def one_end(m: Model) -> None:
    """Embedding and head take one pair of end options."""
    m.one_end = pyo.Constraint(expr=sum(m.end[k] for k in m.end) == 1) if len(m.end) else pyo.Constraint(rule=pyo.Constraint.Skip)


def memory(m: Model) -> None:
    """Weights and KV cache of a stage's layers, and what its ends take beyond the smallest, fit in what those and workspace leave."""
    candidate = m.candidate.value

    def rule(m: Model, j: int) -> Any:
        capacity, scale = int(candidate.capacity[j]), int(candidate.scale[j])
        used = sum(int(candidate.layer_bytes[k, b]) / scale * m.n[k, b] for k, b in m.offers if k == j)
        return row(used + of_ends(m, candidate.end_bytes[:, j] / scale) <= capacity / scale - m.shrink)

    m.memory = pyo.Constraint(m.stages, rule=rule)


def prefill_stage(m: Model) -> None:
    """Prefill goes at the pace of its slowest stage …"""
    m.prefill_stage = pyo.Constraint(m.stages, rule=lambda m, j: m.prefill_rest >= stage_ms(m, "prefill", j, "rest"))


def prefill_link(m: Model) -> None:
    """… or link."""
    rest = links_ms(m, "prefill", "rest")
    m.prefill_link = pyo.Constraint(range(len(rest)), rule=lambda m, j: m.prefill_rest >= rest[j])


def decode_stage(m: Model) -> None:
    """The last decode round drains at the pace of its slowest stage …"""
    m.decode_stage = pyo.Constraint(m.stages, rule=lambda m, j: m.decode_rest >= stage_ms(m, "decode", j, "rest"))


def decode_link(m: Model) -> None:
    """… or link."""
    rest = links_ms(m, "decode", "rest")
    m.decode_link = pyo.Constraint(range(len(rest)), rule=lambda m, j: m.decode_rest >= rest[j])


def round_stage(m: Model) -> None:
    """In a decode round every stage serves all micro-batches."""
    m.round_stage = pyo.Constraint(
        m.stages, rule=lambda m, j: m.round >= stage_ms(m, "decode", j, "largest") + stage_ms(m, "decode", j, "rest")
    )


def round_link(m: Model) -> None:
    """So does every link."""
    total = links_ms(m, "decode", "all")
    m.round_link = pyo.Constraint(range(len(total)), rule=lambda m, j: m.round >= total[j])


def round_trip(m: Model) -> None:
    """A micro-batch's next token waits until its last one has passed all stages and come back."""
    m.round_trip = pyo.Constraint(expr=m.round >= pass_ms(m, "decode") + m.candidate.value.return_ms)


def quality_budget(m: Model) -> None:
    """Σ omega within the budget, where the problem has one."""
    budget = m.problem.value.quality_budget
    if budget is not None:
        m.quality_budget = pyo.Constraint(expr=row(omega_sum(m) <= budget - m.shrink * max(1.0, budget)))


CONSTRAINTS: tuple[Callable[[Model], None], ...] = (
    contiguous_layers,
    contiguous_stages,
    stage_not_empty,
    one_option,
    option_count,
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


def build_model(problem: Problem, candidate: Candidate, *, cutoff_ms: float | None = None, shrink: float = 0.0) -> Model:
    """The whole program; with ``cutoff_ms`` only plans with an objective up to it are wanted (else: infeasible).

    ``shrink`` tightens memory and budget by that fraction, against a solver that breaks them within its tolerance.
    """
    m = declare(problem, candidate)
    m.shrink = shrink
    for constrain in CONSTRAINTS:
        constrain(m)
    set_objective(m, cutoff_ms)
    return m


def set_objective(m: Model, cutoff_ms: float | None) -> None:
    """T_p + T_d (+ theta · Σ omega), and a row that asks for no more than ``cutoff_ms``."""
    total = time_ms(m)
    if m.problem.value.theta_ms:
        total = total + m.problem.value.theta_ms * omega_sum(m)
    m.objective = pyo.Objective(expr=total, sense=pyo.minimize)
    if cutoff_ms is not None:
        m.cutoff = pyo.Constraint(expr=total <= cutoff_ms)
