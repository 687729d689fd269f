"""Lower bounds of a candidate: the linear relaxation without contiguity, certified by evaluating its Lagrangian dual.

Relaxing the cut and the integers leaves a linear program over x[i, b] (layer i at option b), n[j, b] (layers of stage j at option b,
no longer whole) and y[k] (shares of the pairs of end options). Its optimal multipliers, or any others, give a bound that is valid by
weak duality: with every row priced, each layer takes its cheapest (stage, option) on its own, and the ends their cheapest pair. So a
bound never rests on a solver's tolerances, and multipliers found for one candidate bound every other candidate with as many stages for
the price of a few array operations.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from llmpq.plan.candidate import Candidate, Floats
from llmpq.plan.problem import Problem


@dataclass(frozen=True)
class Multipliers:
    """Prices of the relaxed rows; all >= 0. Resources are the stages, then the links.

    ``prefill`` and ``decode`` [resources] sum to 1, ``round_`` [resources] and ``trip`` together to n − 2, ``memory`` and
    ``not_empty`` are per stage, ``budget`` is the price of Σ omega.
    """

    prefill: Floats
    decode: Floats
    round_: Floats
    trip: float
    memory: Floats
    not_empty: Floats
    budget: float


class Relaxation:
    """Bounds for the candidates of one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.omega = np.array([problem.omega[option] for option in problem.options]).T

    def trivial(self, candidate: Candidate) -> Multipliers:
        """Multipliers that need no solver: every resource equally dear, memory free."""
        stages, resources = candidate.stages, candidate.stages + len(candidate.times["decode"].link_rest)
        even = np.r_[np.full(stages, 1 / stages), np.zeros(resources - stages)]
        zero = np.zeros(stages)
        return Multipliers(even, even, even * max(candidate.new_tokens - 2, 0), 0.0, zero, zero, 0.0)

    def evaluate(self, candidate: Candidate, prices: Multipliers) -> float:
        """The Lagrangian dual function: a lower bound of the candidate's objective for any valid multipliers."""
        stages = candidate.stages
        first, later = candidate.times["prefill"], candidate.times["decode"]
        decoding = float(candidate.new_tokens >= 2)
        passes = decoding * (1 + prices.trip)
        u, v, w = prices.prefill[:stages], decoding * prices.decode[:stages], decoding * prices.round_[:stages]
        cost = first.layer_largest + u[:, None] * first.layer_rest
        cost = cost + (passes + w)[:, None] * later.layer_largest + (v + w)[:, None] * later.layer_rest
        cost = cost + (prices.memory / candidate.scale)[:, None] * candidate.layer_bytes - prices.not_empty[:, None]
        cheapest = np.where(candidate.available, cost, np.inf).min(axis=0)
        value = (cheapest[None, :] + (self.problem.theta_ms + prices.budget) * self.omega).min(axis=1).sum()
        value += first.fixed_largest.sum() + first.link_largest.sum() + u @ first.fixed_rest
        value += passes * (later.fixed_largest.sum() + later.link_largest.sum()) + decoding * prices.trip * candidate.return_ms
        value += (w @ later.fixed_largest) + ((v + w) @ later.fixed_rest)
        ends = first.end_largest.sum(axis=1) + first.end_rest @ u + later.end_largest @ (passes + w) + later.end_rest @ (v + w)
        ends = ends + candidate.end_bytes @ (prices.memory / candidate.scale)
        value += (ends + (self.problem.theta_ms + prices.budget) * candidate.end_omega).min()
        u, v, w = prices.prefill[stages:], decoding * prices.decode[stages:], decoding * prices.round_[stages:]
        value += u @ first.link_rest + w @ later.link_largest + (v + w) @ later.link_rest
        value += prices.not_empty.sum() - prices.memory @ (candidate.capacity / candidate.scale)
        value -= prices.budget * (self.problem.quality_budget or 0.0)
        return float(value)

    def solve(self, candidate: Candidate) -> Multipliers | None:
        """Optimal multipliers of the linear relaxation; None where it is infeasible, so that no plan exists for the candidate."""
        program = _program(self.problem, self.omega, candidate)
        result = linprog(program.cost, A_ub=program.rows, b_ub=program.limits, A_eq=program.equal, b_eq=program.values, method="highs")
        if result.status == 2:
            return None
        if result.status != 0:
            return self.trivial(candidate)
        return _multipliers(candidate, np.maximum(-result.ineqlin.marginals, 0.0), self.problem.quality_budget is not None)


@dataclass(frozen=True)
class _Program:
    cost: Floats
    rows: sparse.csr_array
    limits: Floats
    equal: sparse.csr_array
    values: Floats


def _program(problem: Problem, omega: Floats, candidate: Candidate) -> _Program:
    """Columns: x[i, b], n[j, b], prefill rest, decode rest, round, y[k]."""
    ns = candidate.available.size
    first, later = candidate.times["prefill"], candidate.times["decode"]
    decoding, rounds = float(candidate.new_tokens >= 2), float(max(candidate.new_tokens - 2, 0))
    rows, limits = _inequalities(candidate, omega.size)
    if problem.quality_budget is not None:
        budget_row = np.concatenate([omega.reshape(-1), np.zeros(ns + 3), candidate.end_omega])
        rows = sparse.vstack([rows, sparse.csr_array(budget_row[None, :])], format="csr")
        limits = np.append(limits, problem.quality_budget)
    cost_n = first.layer_largest + decoding * later.layer_largest
    cost_ends = first.end_largest.sum(axis=1) + decoding * later.end_largest.sum(axis=1) + problem.theta_ms * candidate.end_omega
    cost = np.concatenate([problem.theta_ms * omega.reshape(-1), cost_n.reshape(-1), [1.0, decoding, rounds], cost_ends])
    equal, values = _equalities(candidate, omega.shape[0])
    return _Program(cost, rows, limits, equal, values)


def _inequalities(candidate: Candidate, xs: int) -> tuple[sparse.csr_array, Floats]:
    """Maxima of prefill, decode and round over stages and links, round trip, memory, no empty stage: the order ``_multipliers`` reads."""
    stages, options = candidate.available.shape
    first, later = candidate.times["prefill"], candidate.times["decode"]
    owner = np.repeat(np.eye(stages), options, axis=1)
    no_layers = np.zeros((len(later.link_rest), stages * options))
    no_ends = np.zeros((len(later.link_rest), len(candidate.ends)))

    def per_stage(values: Floats) -> Floats:
        return owner * values.reshape(1, -1)

    trip = later.fixed_largest.sum() + later.link_largest.sum() + candidate.return_ms
    # (coefficients of n, of y, which maximum the row bounds from below, limit)
    blocks: list[tuple[Floats, Floats, int | None, Floats]] = [
        (per_stage(first.layer_rest), first.end_rest.T, 0, -first.fixed_rest),
        (no_layers, no_ends, 0, -first.link_rest),
        (per_stage(later.layer_rest), later.end_rest.T, 1, -later.fixed_rest),
        (no_layers, no_ends, 1, -later.link_rest),
        (
            per_stage(later.layer_largest + later.layer_rest),
            (later.end_largest + later.end_rest).T,
            2,
            -(later.fixed_largest + later.fixed_rest),
        ),
        (no_layers, no_ends, 2, -(later.link_largest + later.link_rest)),
        (later.layer_largest.reshape(1, -1), later.end_largest.sum(axis=1)[None, :], 2, np.array([-trip])),
        (
            per_stage(candidate.layer_bytes / candidate.scale[:, None]),
            (candidate.end_bytes / candidate.scale).T,
            None,
            candidate.capacity / candidate.scale,
        ),
        (-owner, np.zeros((stages, len(candidate.ends))), None, -np.ones(stages)),
    ]
    left, right = (np.concatenate([block[part] for block in blocks]) for part in (0, 1))
    maxima = [np.eye(3)[maximum] if maximum is not None else np.zeros(3) for block, _, maximum, _ in blocks for _ in block]
    parts = [sparse.csr_array((len(left), xs)), *map(sparse.csr_array, (left, -np.array(maxima), right))]
    return sparse.hstack(parts, format="csr"), np.concatenate([limit for _, _, _, limit in blocks])


def _equalities(candidate: Candidate, layers: int) -> tuple[sparse.csr_array, Floats]:
    """Each layer takes one option, the ends one pair; per option the layers are those of all stages together; what is not offered
    gets none."""
    stages, options = candidate.available.shape
    xs, ns, ends = layers * options, stages * options, len(candidate.ends)
    one = sparse.hstack([sparse.kron(sparse.eye_array(layers), np.ones((1, options))), sparse.csr_array((layers, ns + 3 + ends))])
    of_layers, of_stages = (sparse.kron(np.ones((1, count)), sparse.eye_array(options)) for count in (layers, stages))
    count = sparse.hstack([of_layers, -of_stages, sparse.csr_array((options, 3 + ends))])
    absent = np.flatnonzero(~candidate.available.reshape(-1))
    nothing = sparse.csr_array((np.ones(len(absent)), (np.arange(len(absent)), xs + absent)), shape=(len(absent), xs + ns + 3 + ends))
    pair = sparse.hstack([sparse.csr_array((1, xs + ns + 3)), sparse.csr_array(np.ones((1, ends)))])
    return sparse.vstack([one, count, nothing, pair], format="csr"), np.r_[np.ones(layers), np.zeros(options + len(absent)), 1.0]


def _multipliers(candidate: Candidate, marginals: Floats, budgeted: bool) -> Multipliers:
    """Read the duals of ``_inequalities`` and make the groups sum to what they must (solver tolerance aside, they do)."""
    stages, resources = candidate.stages, candidate.stages + len(candidate.times["decode"].link_rest)
    cuts = np.cumsum([resources, resources, resources, 1, stages, stages])
    prefill, decode, round_, trip, memory, not_empty, budget = np.split(marginals, cuts)
    even = np.r_[np.full(stages, 1 / stages), np.zeros(resources - stages)]

    def normalised(values: Floats, total: float) -> Floats:
        found = values.sum()
        return values * (total / found) if found > 0 else np.resize(even, len(values)) * total

    both = normalised(np.append(round_, trip), max(candidate.new_tokens - 2, 0))
    return Multipliers(
        normalised(prefill, 1.0),
        normalised(decode, 1.0),
        both[:-1],
        float(both[-1]),
        memory,
        not_empty,
        float(budget[0]) if budgeted else 0.0,
    )
