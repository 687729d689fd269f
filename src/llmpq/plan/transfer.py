"""The fast planner: bit-width transfer (method, section 8), from the adabits plan to a better one in a second or two, without a solver.

Repeatedly the slowest stage hands work to another one. The published moves are pairs (P → k×Q): the faster stage gives up one layer slot
of precision P and holds k layers of precision Q there, its own and k − 1 taken from the slow one (16→2×8, 16→4×4, 8→2×4); or a layer
goes over, or changes its option, as it is (8→1×8, 4→1×4). Options are named and their widths known by name, so that w8a8, 3 bit or
options that differ in their KV cache take part: k is how many times the bits of Q go into those of P. A move is accepted if the
objective falls and every stage still fits; the search ends when none is.

Device orders to start from are those of the plans met when every choice of micro-batches is bounded once (``first_paths``); where stages
cannot be listed, those with the lowest linear relaxation (``promise``), of up to ORDERS at a few micro-batches. For these orders the
micro-batches with the lowest relaxation are looked at. Starts are the plans met, and of every candidate chosen its adabits plan and its
rounded relaxation, since a descent ends in the valley that it starts in.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from llmpq.plan.assign import assign
from llmpq.plan.bound import Relaxation
from llmpq.plan.candidate import Assignment, Candidate, Counts, Floats, build, within_budget
from llmpq.plan.first_paths import first_paths
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.moves import Moves
from llmpq.plan.orders import device_orders
from llmpq.plan.polish import polish
from llmpq.plan.pricing import fitting, totals_ms
from llmpq.plan.problem import Problem
from llmpq.plan.promise import most_promising
from llmpq.plan.rounded import rounded_counts

ORDERS = 600  # device orders looked at, those with more devices first
PROBES = 4  # choices of micro-batches that orders are compared at
FEW = 1500  # candidates that are all looked at
PROGRAMS = 24  # linear programs solved to tell which candidates are promising
STARTS = 8  # candidates with which the descent may begin
KEPT = 3  # orders kept, and starts from which the descent is made
SHARPNESS = (8.0, 30.0, math.inf)  # norms in place of the maxima, one descent after the other
TRIES = 6  # moves per step whose exact objective is asked for
_GAIN = 1e-9


@dataclass(frozen=True)
class _State:
    candidate: Candidate
    counts: Counts
    end: int
    assignment: Assignment
    worth: tuple[bool, float]  # (breaks the quality budget, objective in ms; where it breaks it, Σ omega)


def transfer(problem: Problem, _: list[Candidate] | None = None) -> Assignment | None:
    """The best plan that transfers reach; None where no start fits in memory (with orders left out: see ORDERS)."""
    descent = _Descent(problem)
    met = first_paths(problem, STARTS)
    starts = _starts(problem, [candidate.order for candidate, _, _ in met])
    tables = LeastOmega(problem, starts)
    firsts = met + [(candidate, counts, end) for candidate in starts for counts, end in _first_counts(problem, candidate, tables)]
    states = [descent.state(candidate, counts, end) for candidate, counts, end in firsts]
    states.sort(key=lambda state: state.worth)
    # Those outside the budget, the relaxation rounded the wrong way, are often a move away from the best plans.
    within, over = ([state for state in states if state.worth[0] == breaks][:KEPT] for breaks in (False, True))
    ends = [descent.run(state) for state in within + over]
    if not ends:
        return None
    best = min(ends, key=lambda state: state.worth).assignment
    return best if problem.quality_budget is None else polish(problem, best)


def _first_counts(problem: Problem, candidate: Candidate, tables: LeastOmega) -> list[tuple[Counts, int]]:
    """Counts and ends that the descent may begin with."""
    found = [tables.best(candidate)]
    for end in range(len(candidate.ends)):
        counts = rounded_counts(problem, candidate, end)
        found.append(None if counts is None else (counts, end))
    return [item for item in found if item is not None]


def _starts(problem: Problem, met: list[tuple[int, ...]]) -> list[Candidate]:
    """The most promising micro-batches for the first orders of ``met``, or, where none was met, for the most promising orders."""
    relaxation = Relaxation(problem)
    orders = list(dict.fromkeys(met))[:KEPT] or _promising_orders(problem, relaxation)
    every = [build(problem, order, batches) for order in orders for batches in problem.micro_batches]
    return most_promising(relaxation, every, STARTS, PROGRAMS)


def _promising_orders(problem: Problem, relaxation: Relaxation) -> list[tuple[int, ...]]:
    """All device orders where candidates are few, else those with the lowest relaxation at a few micro-batches."""
    orders = list(itertools.islice(device_orders(problem), ORDERS))
    if len(orders) * len(problem.micro_batches) <= FEW:
        return orders
    probed = [build(problem, order, batches) for order in orders for batches in _probes(problem)]
    found = most_promising(relaxation, probed, 4 * KEPT, PROGRAMS)
    return list(dict.fromkeys(candidate.order for candidate in found))[:KEPT]


def _probes(problem: Problem) -> list[MicroBatches]:
    """A few choices spread over all of them, from the largest decode micro-batch to the smallest."""
    choices = problem.micro_batches
    places = {round(k * (len(choices) - 1) / max(PROBES - 1, 1)) for k in range(PROBES)}
    return [choices[place] for place in sorted(places)]


class _Descent:
    """Transfers for one problem; the moves are the same for all candidates with as many stages."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.omega = np.array([problem.omega[option] for option in problem.options])
        self.bits = [problem.bits[option] for option in problem.options]
        self.moves: dict[int, Moves] = {}
        self.sharpness = math.inf

    def state(self, candidate: Candidate, counts: Counts, end: int) -> _State:
        assignment = Assignment(candidate.order, candidate.batches, assign(self.problem, counts), candidate.ends[end])
        omega = assignment.omega_sum(self.problem)
        over = not within_budget(self.problem, omega)
        return _State(candidate, counts, end, assignment, (over, omega if over else self.value(candidate, counts, end, omega)))

    def value(self, candidate: Candidate, counts: Counts, end: int, omega: float) -> float:
        """The objective in ms, its maxima as sharp as they are at the moment."""
        return float(totals_ms(candidate, counts[None], end, self.sharpness)[0]) + self.problem.theta_ms * omega

    def run(self, state: _State) -> _State:
        """Transfers until none helps, then the best micro-batches for what came out, and so on until nothing changes.

        Blunt maxima first: among stages that are equally slow a single move gains nothing unless relieving one of them counts.
        """
        for self.sharpness in SHARPNESS:
            state = self.transfers(self.state(state.candidate, state.counts, state.end))
        while True:
            state = self.transfers(state)
            other = self.other_batches(state)
            if other.worth >= state.worth:
                return state
            state = other

    def transfers(self, state: _State) -> _State:
        while (better := self.step(state)) is not None:
            state = better
        return state

    def other_batches(self, state: _State) -> _State:
        """The same layers and options at every other choice of micro-batches."""
        found, omega = state, state.assignment.omega_sum(self.problem)
        for batches in self.problem.micro_batches:
            candidate = build(self.problem, state.candidate.order, batches)
            if not state.worth[0] and candidate.fits(state.counts, state.end):
                assignment = Assignment(candidate.order, batches, state.assignment.stages, state.assignment.ends)
                other = _State(
                    candidate, state.counts, state.end, assignment, (False, self.value(candidate, state.counts, state.end, omega))
                )
                found = other if self.better(other, found) else found
        return found

    def step(self, state: _State) -> _State | None:
        """The best move found, from the slowest stages first, then from any stage, then two changes at once; None where none helps."""
        candidate, counts = state.candidate, state.counts
        for end in range(len(candidate.ends)):
            if end != state.end and candidate.fits(counts, end):
                found = self.state(candidate, counts, end)
                if self.better(found, state):
                    return found
        moves = self.moves.setdefault(candidate.stages, Moves(candidate.stages, self.bits))
        damage = self.damage(state)
        slow = moves.sources(slowest_stages(candidate, counts, state.end))
        for chosen in (slow, ~slow):
            better = self.best_move(state, counts + moves.change[chosen], moves.damage(damage)[chosen])
            if better is not None:
                return better
        first, second = moves.pairs
        changes = moves.damage(damage)
        return self.best_move(state, counts + moves.change[first] + moves.change[second], changes[first] + changes[second])

    def damage(self, state: _State) -> Floats:
        """[N, B, B]: what changing the most suitable layer of stage j from option p to q adds to Σ omega; inf without such a layer."""
        options = len(self.problem.options)
        found = np.full((state.candidate.stages, options, options), np.inf)
        layer = 0
        for j, names in enumerate(state.assignment.stages):
            for name in names:
                p = self.problem.options.index(name)
                found[j, p] = np.minimum(found[j, p], self.omega[:, layer] - self.omega[p, layer])
                layer += 1
        return found

    def best_move(self, state: _State, trials: Counts, damage: Floats) -> _State | None:
        """The first of the TRIES most promising trials whose exact worth is better; ``damage`` [K] is an estimate."""
        usable = np.flatnonzero(np.isfinite(damage) & (trials >= 0).all(axis=(1, 2)))
        usable = usable[fitting(state.candidate, trials[usable], state.end)]
        omega = state.assignment.omega_sum(self.problem) + damage[usable]
        if self.problem.quality_budget is not None and not state.worth[0]:
            keeps = omega <= self.problem.quality_budget + _GAIN
            usable, omega = usable[keeps], omega[keeps]
        promise = totals_ms(state.candidate, trials[usable], state.end, self.sharpness) + self.problem.theta_ms * omega
        if state.worth[0]:  # outside the budget: less damage first
            promise = omega
        for place in np.argsort(promise, kind="stable")[:TRIES]:
            if not state.worth[0] and promise[place] >= state.worth[1] * (1 - _GAIN):
                return None
            found = self.state(state.candidate, trials[usable[place]], state.end)
            if self.better(found, state):
                return found
        return None

    def better(self, found: _State, state: _State) -> bool:
        return found.worth < (state.worth[0], state.worth[1] * (1 - _GAIN))


def slowest_stages(candidate: Candidate, counts: Counts, end: int) -> list[int]:
    """The slowest stage of prefill and that of decode."""
    found = set()
    for times in candidate.times.values():
        total = times.fixed_largest + times.fixed_rest + times.end_largest[end] + times.end_rest[end]
        total = total + (counts * (times.layer_largest + times.layer_rest)).sum(axis=1)
        found.add(int(total.argmax()))
    return sorted(found)
