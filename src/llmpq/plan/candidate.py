"""One candidate of the outer search (device order, micro-batches) and the numbers a plan for it is priced with."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmpq.plan.makespan import Makespan, makespan
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import PHASES, Part, Problem

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PhaseTimes:
    """Times in ms of one phase, split into the largest micro-batch and all the others together.

    ``layer_*`` [N, B] per layer of each option (0 where not available), ``fixed_*`` [N] whatever a stage does besides its layers
    (embedding, head, overhead, blocking send), ``link_*`` [N-1] overlapped sends (empty when sends block).
    """

    layer_largest: Floats
    layer_rest: Floats
    fixed_largest: Floats
    fixed_rest: Floats
    link_largest: Floats
    link_rest: Floats


@dataclass(frozen=True)
class Candidate:
    """Device order and micro-batches with all coefficients; time and memory of a plan are linear in its counts [N, B]."""

    order: tuple[int, ...]
    batches: MicroBatches
    options: tuple[str, ...]
    available: npt.NDArray[np.bool_]
    times: dict[str, PhaseTimes]
    return_ms: float
    new_tokens: int
    layer_bytes: Counts
    end_bytes: Counts
    workspace_bytes: Counts
    capacity: Counts

    @property
    def stages(self) -> int:
        return len(self.order)

    def makespan(self, counts: Counts) -> Makespan:
        """Makespan of one batch for ``counts`` [N, B], the number of layers of each stage at each option."""
        phases = {}
        for phase in PHASES:
            times = self.times[phase]
            largest = times.fixed_largest + (times.layer_largest * counts).sum(axis=1)
            rest = times.fixed_rest + (times.layer_rest * counts).sum(axis=1)
            stages = list(zip(largest.tolist(), rest.tolist(), strict=True))
            links = list(zip(times.link_largest.tolist(), times.link_rest.tolist(), strict=True))
            phases[phase] = (stages, links)
        return makespan(phases["prefill"], phases["decode"], self.return_ms, self.new_tokens)

    def used_bytes(self, counts: Counts) -> Counts:
        """Bytes of the layers (weights and KV cache) per stage [N]; must not exceed ``capacity``."""
        return (self.layer_bytes * counts).sum(axis=1)

    def fits(self, counts: Counts) -> bool:
        return bool((self.used_bytes(counts) <= self.capacity).all() and not (counts > 0)[~self.available].any())


def build(problem: Problem, order: Sequence[int], batches: MicroBatches) -> Candidate:
    """Collect the coefficients of one candidate; ``order`` are indices into ``problem.devices``, stage 0 first."""
    devices = [problem.devices[index] for index in order]
    shape = (len(order), len(problem.options))
    available = np.array([[option in device.options for option in problem.options] for device in devices], dtype=bool)
    layer_bytes = np.zeros(shape, dtype=np.int64)
    for j, device in enumerate(devices):
        for b, option in enumerate(problem.options):
            if option in device.options:
                layer_bytes[j, b] = device.options[option].resident_bytes + problem.kv_bytes_per_layer
    ends = np.zeros(len(order), dtype=np.int64)
    ends[0] += devices[0].embedding.resident_bytes
    ends[-1] += devices[-1].head.resident_bytes
    workspace = np.array(
        [max(device.workspace_bytes[phase][size] for phase in PHASES for size in set(batches.sizes(phase))) for device in devices],
        dtype=np.int64,
    )
    memory = np.array([device.memory_bytes for device in devices], dtype=np.int64)
    last, first = order[-1], order[0]
    return_ms = 0.0 if last == first else problem.links[last, first].ms(batches.eta * problem.token_bytes)
    return Candidate(
        order=tuple(order),
        batches=batches,
        options=problem.options,
        available=available,
        times={phase: _phase_times(problem, order, batches, phase) for phase in PHASES},
        return_ms=return_ms,
        new_tokens=problem.new_tokens,
        layer_bytes=layer_bytes,
        end_bytes=ends,
        workspace_bytes=workspace,
        capacity=memory - ends - workspace,
    )


def _phase_times(problem: Problem, order: Sequence[int], batches: MicroBatches, phase: str) -> PhaseTimes:
    devices = [problem.devices[index] for index in order]
    sizes = list(batches.sizes(phase))
    largest = max(sizes)
    rest = list(sizes)
    rest.remove(largest)

    def both(part: Part) -> tuple[float, float]:
        table = part.ms[phase]
        return table[largest], sum(table[size] for size in rest)

    layer = np.zeros((2, len(order), len(problem.options)))
    fixed = np.zeros((2, len(order)))
    for j, device in enumerate(devices):
        for b, option in enumerate(problem.options):
            if option in device.options:
                layer[:, j, b] = both(device.options[option])
        overhead = device.overhead_ms[phase]
        fixed[:, j] = overhead, overhead * len(rest)
    fixed[:, 0] += both(devices[0].embedding)
    fixed[:, -1] += both(devices[-1].head)
    links = np.zeros((2, len(order) - 1))
    for j, (a, b) in enumerate(itertools.pairwise(order)):
        link = problem.links[a, b]
        links[0, j] = link.ms(problem.payload_bytes(phase, largest))
        links[1, j] = sum(link.ms(problem.payload_bytes(phase, size)) for size in rest)
    if not problem.overlapped_sends:
        fixed[:, :-1] += links
        links = np.zeros((2, 0))
    return PhaseTimes(layer[0], layer[1], fixed[0], fixed[1], links[0], links[1])


@dataclass(frozen=True)
class Assignment:
    """A complete decision: devices in stage order, micro-batches, and the option of every layer, stage by stage."""

    order: tuple[int, ...]
    batches: MicroBatches
    stages: tuple[tuple[str, ...], ...]

    def counts(self, options: Sequence[str]) -> Counts:
        return np.array([[stage.count(option) for option in options] for stage in self.stages], dtype=np.int64)

    def omega_sum(self, problem: Problem) -> float:
        """Σ omega over the layers."""
        chosen = [option for stage in self.stages for option in stage]
        return float(sum(problem.omega[option][layer] for layer, option in enumerate(chosen)))

    def key(self) -> tuple[Any, ...]:
        """For breaking ties in a fixed way."""
        return (len(self.order), self.order, self.batches, self.stages)


# A budget may be exceeded by rounding only: sums of floats in different orders.
BUDGET_TOLERANCE = 1e-9


def within_budget(problem: Problem, omega_sum: float) -> bool:
    """Whether Σ omega satisfies the problem's quality budget (any finite one does, where it has none)."""
    budget = problem.quality_budget
    if budget is None:
        return math.isfinite(omega_sum)
    return omega_sum <= budget + BUDGET_TOLERANCE * max(1.0, budget)


def objective_ms(problem: Problem, candidate: Candidate, assignment: Assignment) -> float:
    """The problem's objective for one batch: T_p + T_d (+ theta_ms · Σ omega)."""
    time = candidate.makespan(assignment.counts(problem.options)).total_ms
    return time + problem.theta_ms * assignment.omega_sum(problem)
