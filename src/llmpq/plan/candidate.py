"""One candidate of the outer search (device order, micro-batches) and the numbers a plan for it is priced with.

What a plan of the candidate still decides is the counts [N, B] of layers per stage and option, and one of the K ``ends``: the pair of
end options of the embedding on the first stage and the head on the last.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmpq.plan.makespan import Makespan, makespan
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import ENDS, PHASES, Device, Problem

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PhaseTimes:
    """Times in ms of one phase, split into the largest micro-batch and all the others together.

    ``layer_*`` [N, B] per layer of each option (0 where not available), ``fixed_*`` [N] whatever a stage does besides its layers
    under any of the ends (overhead, blocking send, the least time of embedding and head), ``end_*`` [K, N] what each of the ends adds
    to that, ``link_*`` [N-1] overlapped sends (empty when sends block).
    """

    layer_largest: Floats
    layer_rest: Floats
    fixed_largest: Floats
    fixed_rest: Floats
    end_largest: Floats
    end_rest: Floats
    link_largest: Floats
    link_rest: Floats


@dataclass(frozen=True)
class Candidate:
    """Device order and micro-batches with all coefficients; time and memory of a plan are linear in its counts [N, B] and its ends.

    ``ends`` are the K pairs (embedding option, head option), ``end_omega`` [K] their sensitivity. ``capacity`` [N] is the memory left for
    layers beside the workspace and the smallest of the ends, ``end_bytes`` [K, N] what each of the ends takes of it. ``workspace_bytes``
    [N], ``layer_bytes`` [N, B] per layer with its KV cache.
    """

    order: tuple[int, ...]
    batches: MicroBatches
    options: tuple[str, ...]
    available: npt.NDArray[np.bool_]
    times: dict[str, PhaseTimes]
    return_ms: float
    new_tokens: int
    layer_bytes: Counts
    ends: tuple[tuple[str, str], ...]
    end_omega: Floats
    end_bytes: Counts
    workspace_bytes: Counts
    capacity: Counts

    @property
    def stages(self) -> int:
        return len(self.order)

    @property
    def scale(self) -> Counts:
        """Unit in which memory is given to solvers, per stage [N]: the capacity, so that rows read as fractions of it."""
        return np.maximum(self.capacity, 1)

    def makespan(self, counts: Counts, end: int) -> Makespan:
        """Makespan of one batch for ``counts`` [N, B], the number of layers of each stage at each option, and ``ends[end]``."""
        phases = {}
        for phase in PHASES:
            times = self.times[phase]
            largest = times.fixed_largest + times.end_largest[end] + (times.layer_largest * counts).sum(axis=1)
            rest = times.fixed_rest + times.end_rest[end] + (times.layer_rest * counts).sum(axis=1)
            stages = list(zip(largest.tolist(), rest.tolist(), strict=True))
            links = list(zip(times.link_largest.tolist(), times.link_rest.tolist(), strict=True))
            phases[phase] = (stages, links)
        return makespan(phases["prefill"], phases["decode"], self.return_ms, self.new_tokens)

    def used_bytes(self, counts: Counts) -> Counts:
        """Bytes of the layers (weights and KV cache) per stage [N]; must not exceed ``capacity``."""
        return (self.layer_bytes * counts).sum(axis=1)

    def fits(self, counts: Counts, end: int) -> bool:
        room = self.capacity - self.end_bytes[end]
        return bool((self.used_bytes(counts) <= room).all() and not (counts > 0)[~self.available].any())

    def end(self, ends: tuple[str, str]) -> int:
        """Number of a pair (embedding option, head option) among ``ends``."""
        return self.ends.index(ends)


def build(problem: Problem, order: Sequence[int], batches: MicroBatches) -> Candidate:
    """Collect the coefficients of one candidate; ``order`` are indices into ``problem.devices``, stage 0 first."""
    devices = [problem.devices[index] for index in order]
    shape = (len(order), len(problem.options))
    available = np.array([[option in device.options for option in problem.options] for device in devices], dtype=bool)
    layer_bytes = np.zeros(shape, dtype=np.int64)
    for j, device in enumerate(devices):
        for b, option in enumerate(problem.options):
            if option in device.options:
                layer_bytes[j, b] = device.options[option].resident_bytes + problem.kv_bytes[option]
    ends = tuple(itertools.product(devices[0].embedding, devices[-1].head))
    end_bytes = np.array([_end_bytes(problem, devices, pair) for pair in ends], dtype=np.int64)
    least_bytes = end_bytes.min(axis=0)
    workspace = np.array(
        [max(device.workspace_bytes[phase][size] for phase in PHASES for size in set(batches.sizes(phase))) for device in devices],
        dtype=np.int64,
    )
    memory = np.array([device.memory_bytes for device in devices], dtype=np.int64)
    last, first = order[-1], order[0]
    return_ms = problem.scheduler_ms + (0.0 if last == first else problem.links[last, first].ms(batches.eta * problem.token_bytes))
    return Candidate(
        order=tuple(order),
        batches=batches,
        options=problem.options,
        available=available,
        times={phase: _phase_times(problem, order, batches, phase) for phase in PHASES},
        return_ms=return_ms,
        new_tokens=problem.new_tokens,
        layer_bytes=layer_bytes,
        ends=ends,
        end_omega=np.array([problem.end_omega["embedding"][a] + problem.end_omega["head"][b] for a, b in ends]),
        end_bytes=end_bytes - least_bytes,
        workspace_bytes=workspace,
        capacity=memory - least_bytes - workspace,
    )


def _end_bytes(problem: Problem, devices: Sequence[Device], pair: tuple[str, str]) -> list[int]:
    """Bytes of embedding and head per stage [N]."""
    found = [0] * len(devices)
    found[0] = devices[0].embedding[pair[0]].resident_bytes
    found[-1] += kept_head_bytes(problem, devices, pair)
    return found


def kept_head_bytes(problem: Problem, devices: Sequence[Device], pair: tuple[str, str]) -> int:
    """Bytes that the head takes on the last of ``devices``, the stages': all its own, or what it needs beyond what it shares with the
    embedding where a single stage has both at one option."""
    embedding, head = devices[0].embedding[pair[0]], devices[-1].head[pair[1]]
    if len(devices) > 1 or pair[0] != pair[1]:
        return head.resident_bytes
    whole = min(embedding.resident_bytes, head.resident_bytes)
    shared = head.shared_bytes if head.shared_bytes is not None else whole if problem.tied_embeddings else 0
    return head.resident_bytes - shared


def _phase_times(problem: Problem, order: Sequence[int], batches: MicroBatches, phase: str) -> PhaseTimes:
    devices = [_device_times(problem, index, batches, phase) for index in order]
    layer, fixed = np.stack([times for times, _, _, _ in devices], axis=1), np.stack([times for _, times, _, _ in devices], axis=1)
    pairs = list(itertools.product(devices[0][2], devices[-1][3]))
    ends = np.zeros((2, len(pairs), len(order)))
    for k, (embedding, head) in enumerate(pairs):
        ends[:, k, 0] += embedding
        ends[:, k, -1] += head
    least = ends.min(axis=1)
    fixed = fixed + least
    ends -= least[:, None, :]
    links = np.zeros((2, len(order) - 1))
    for j, pair in enumerate(itertools.pairwise(order)):
        links[:, j] = _link_times(problem, pair, batches, phase)
    if not problem.overlapped_sends:
        fixed[:, :-1] += links
        links = np.zeros((2, 0))
    return PhaseTimes(layer[0], layer[1], fixed[0], fixed[1], ends[0], ends[1], links[0], links[1])


def _device_times(problem: Problem, index: int, batches: MicroBatches, phase: str) -> tuple[Floats, Floats, list, list]:
    """(largest, rest) of a device's layers [2, B], overhead [2], and each of its embeddings and heads."""
    key = ("device", index, batches, phase)
    if key not in problem.summed:
        device, sizes = problem.devices[index], batches.sizes(phase)
        layer = np.zeros((2, len(problem.options)))
        for b, option in enumerate(problem.options):
            if option in device.options:
                layer[:, b] = two(device.options[option].ms[phase], sizes)
        overhead = device.overhead_ms[phase]
        embedding, head = ([two(part.ms[phase], sizes) for part in parts.values()] for parts in (device.embedding, device.head))
        problem.summed[key] = layer, np.array([overhead, overhead * (len(sizes) - 1)]), embedding, head
    found: tuple[Floats, Floats, list, list] = problem.summed[key]
    return found


def _link_times(problem: Problem, pair: tuple[int, int], batches: MicroBatches, phase: str) -> tuple[float, float]:
    key = ("link", pair, batches, phase)
    if key not in problem.summed:
        link, sizes = problem.links[pair], batches.sizes(phase)
        problem.summed[key] = two({size: link.ms(problem.payload_bytes(phase, size)) for size in sizes}, sizes)
    found: tuple[float, float] = problem.summed[key]
    return found


def two(table: Mapping[int, float], sizes: Iterable[int]) -> tuple[float, float]:
    """(time of the largest micro-batch, of all the others together) from times by size."""
    rest = list(sizes)
    largest = max(rest)
    rest.remove(largest)
    return table[largest], float(sum(table[size] for size in rest))


@dataclass(frozen=True)
class Assignment:
    """A complete decision: devices in stage order, micro-batches, the option of every layer, stage by stage, and of both ends.

    ``ends`` is (embedding option, head option).
    """

    order: tuple[int, ...]
    batches: MicroBatches
    stages: tuple[tuple[str, ...], ...]
    ends: tuple[str, str]

    def counts(self, options: Sequence[str]) -> Counts:
        return np.array([[stage.count(option) for option in options] for stage in self.stages], dtype=np.int64)

    def omega_sum(self, problem: Problem) -> float:
        """Σ omega over the layers, and that of embedding and head."""
        chosen = [option for stage in self.stages for option in stage]
        ends = sum(problem.end_omega[end][option] for end, option in zip(ENDS, self.ends, strict=True))
        return float(sum(problem.omega[option][layer] for layer, option in enumerate(chosen)) + ends)

    def key(self) -> tuple[Any, ...]:
        """For breaking ties in a fixed way."""
        return (len(self.order), self.order, self.batches, self.stages, self.ends)


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
    time = candidate.makespan(assignment.counts(problem.options), candidate.end(assignment.ends)).total_ms
    return time + problem.theta_ms * assignment.omega_sum(problem)
