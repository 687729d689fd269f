"""Offloading, as FlexGen does it: 16 or 4 bit everywhere, and layers that do not fit on their device stream from host memory.

A stage keeps as many of its layers' weights as fit beside its KV cache, its ends, its workspace and two buffers of one layer. The others
cross the device's host link in every pass of a micro-batch, while the stage computes: a pass takes the longer of the two. Transfers are
taken to overlap perfectly and to have no latency, so the price is one that a real system does not beat. The cache stays on the device.
This runtime does not stream weights: the price is for comparison, beside the search and not part of it.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpq.plan.baselines import ends_by_damage
from llmpq.plan.candidate import Candidate, within_budget
from llmpq.plan.makespan import Makespan, makespan
from llmpq.plan.problem import PHASES, Problem

WIDTHS = (16, 4)  # weight bits of the published system
BUFFERS = 2  # layers in flight: one computes while the next one arrives


@dataclass(frozen=True)
class Host:
    """Memory beside a device and the link to it."""

    memory_bytes: int
    bytes_per_ms: float


@dataclass(frozen=True)
class Offloaded:
    """One priced decision: layers per stage, how many of them stream, one option for all layers."""

    candidate: Candidate
    option: str
    end: int
    layers: tuple[int, ...]
    streamed: tuple[int, ...]
    times: Makespan
    omega_sum: float
    objective_ms: float


def hosts(problem: Problem) -> dict[int, Host]:
    """Host memory by number of the device; {} where the problem gives none."""
    given = {index: entry["host"] for index, entry in enumerate(problem.document["devices"]) if "host" in entry}
    return {index: Host(int(host["memory_bytes"]), float(host["bytes_per_ms"])) for index, host in given.items()}


def offload(problem: Problem, candidates: Sequence[Candidate]) -> Offloaded | None:
    """The best price over all candidates and both widths, within the quality budget first; None without hosts or where nothing fits."""
    beside = hosts(problem)
    if not beside:
        return None
    best: Offloaded | None = None
    for b, option in enumerate(problem.options):
        for candidate in candidates if problem.bits[option] in WIDTHS else ():
            found = _price(problem, candidate, b, beside)
            if found is not None and (best is None or _worth(problem, found) < _worth(problem, best)):
                best = found
    return best


def _worth(problem: Problem, found: Offloaded) -> tuple[bool, float]:
    return (not within_budget(problem, found.omega_sum), found.objective_ms)


def _price(problem: Problem, candidate: Candidate, b: int, beside: Mapping[int, Host]) -> Offloaded | None:
    if not candidate.available[:, b].all():
        return None
    for end in ends_by_damage(problem, candidate):
        cut = _cut(problem, candidate, b, end, beside)
        if cut is not None:
            streamed = [_streamed(problem, candidate, b, end, beside, j, layers) or 0 for j, layers in enumerate(cut)]
            times = _times(problem, candidate, b, end, beside, cut, streamed)
            omega = sum(problem.omega[problem.options[b]]) + float(candidate.end_omega[end])
            value = times.total_ms + problem.theta_ms * omega
            return Offloaded(candidate, problem.options[b], end, cut, tuple(streamed), times, omega, value)
    return None


def _streamed(problem: Problem, candidate: Candidate, b: int, end: int, beside: Mapping[int, Host], j: int, layers: int) -> int | None:
    """How many of ``layers`` stream on stage j: the fewest; None where they do not fit even so."""
    room = int(candidate.capacity[j] - candidate.end_bytes[end, j])
    cache = problem.kv_bytes[problem.options[b]]
    weights = int(candidate.layer_bytes[j, b]) - cache
    if layers * (weights + cache) <= room:
        return 0
    host = beside.get(candidate.order[j])
    free = room - layers * cache - BUFFERS * weights
    if host is None or free < 0 or not weights:
        return None
    moving = layers - free // weights
    return moving if moving * weights <= host.memory_bytes else None


def _pass_ms(
    problem: Problem, candidate: Candidate, b: int, end: int, beside: Mapping[int, Host], j: int, layers: int, streamed: int, phase: str
) -> dict[int, float]:
    """Time of one pass through stage j by micro-batch size, without its send."""
    device = problem.devices[candidate.order[j]]
    parts = [device.embedding[candidate.ends[end][0]]] * (j == 0) + [device.head[candidate.ends[end][1]]] * (j == candidate.stages - 1)
    weights = device.options[problem.options[b]].resident_bytes
    stream = streamed * weights / beside[candidate.order[j]].bytes_per_ms if streamed else 0.0
    layer = device.options[problem.options[b]].ms[phase]
    fixed = device.overhead_ms[phase]
    return {
        size: max(fixed + layers * layer[size] + sum(part.ms[phase][size] for part in parts), stream)
        for size in set(candidate.batches.sizes(phase))
    }


def _cut(problem: Problem, candidate: Candidate, b: int, end: int, beside: Mapping[int, Host]) -> tuple[int, ...] | None:
    """Layers go one by one to the stage whose decode passes grow to the least, as long as they fit."""
    sizes = candidate.batches.decode

    def grown(j: int, layers: int) -> float | None:
        streamed = _streamed(problem, candidate, b, end, beside, j, layers)
        if streamed is None:
            return None
        table = _pass_ms(problem, candidate, b, end, beside, j, layers, streamed, "decode")
        return sum(table[size] for size in sizes)

    cut = [0] * candidate.stages
    queue = [(-1.0, j) for j in range(candidate.stages)]  # every stage takes one layer first
    for _ in range(problem.layers):
        if not queue:
            return None
        _, j = heapq.heappop(queue)
        if cut[j] == 0 and grown(j, 1) is None:
            return None
        cut[j] += 1
        after = grown(j, cut[j] + 1)
        if after is not None:
            heapq.heappush(queue, (after, j))
    return tuple(cut) if min(cut) >= 1 else None


def _times(
    problem: Problem, candidate: Candidate, b: int, end: int, beside: Mapping[int, Host], cut: Sequence[int], streamed: Sequence[int]
) -> Makespan:
    """The makespan formula with streaming passes; links as in ``candidate``."""
    phases = {}
    for phase in PHASES:
        sizes = list(candidate.batches.sizes(phase))
        largest = max(sizes)
        rest = sizes.copy()
        rest.remove(largest)
        stages = []
        for j, layers in enumerate(cut):
            table = _pass_ms(problem, candidate, b, end, beside, j, layers, streamed[j], phase)
            if not problem.overlapped_sends and j < candidate.stages - 1:
                link = problem.links[candidate.order[j], candidate.order[j + 1]]
                table = {size: ms + link.ms(problem.payload_bytes(phase, size)) for size, ms in table.items()}
            stages.append((table[largest], sum(table[size] for size in rest)))
        times = candidate.times[phase]
        phases[phase] = (stages, list(zip(times.link_largest.tolist(), times.link_rest.tolist(), strict=True)))
    return makespan(phases["prefill"], phases["decode"], candidate.return_ms, candidate.new_tokens)


def offload_block(problem: Problem, found: Offloaded) -> dict[str, Any]:
    """The ``offload`` block of plan.json; times are for all requests, the objective for one batch."""
    runs, candidate = problem.batches, found.candidate
    total_s = found.times.total_ms * runs / 1000
    return {
        "option": found.option,
        "ends": list(candidate.ends[found.end]),
        "stages": [
            {"device": problem.devices[device].name, "layers": layers, "streamed": streamed}
            for device, layers, streamed in zip(candidate.order, found.layers, found.streamed, strict=True)
        ],
        "micro_batch": {"prefill": candidate.batches.xi, "decode": candidate.batches.eta},
        "prefill_s": found.times.prefill_ms * runs / 1000,
        "decode_s": found.times.decode_ms * runs / 1000,
        "tokens_per_s": problem.requests * problem.new_tokens / total_s if total_s > 0 else None,
        "omega_sum": found.omega_sum,
        "objective_ms": found.objective_ms,
        "quality_budget_met": None if problem.quality_budget is None else within_budget(problem, found.omega_sum),
    }


def sentence(block: Mapping[str, Any]) -> str:
    """The block in words."""
    moving, layers = (sum(stage[key] for stage in block["stages"]) for key in ("streamed", "layers"))
    speed = "" if block["tokens_per_s"] is None else f", {block['tokens_per_s']:,.1f} tokens/s"
    names = ", ".join(stage["device"] for stage in block["stages"])
    return (
        f"option {block['option']} on {names}, {moving} of {layers} layers stream from host memory: "
        f"{block['prefill_s'] + block['decode_s']:.3f} s{speed}, objective {block['objective_ms']:.3f} ms, "
        f"sum of omega {block['omega_sum']:.4g}; priced for comparison, this runtime does not stream weights"
    )
