"""From a decision to the body of plan.json: stages with bytes by kind and times, predictions, and what binds."""

from typing import Any

import numpy as np

from llmpq import artifacts
from llmpq.plan.candidate import Assignment, Candidate, build, kept_head_bytes, within_budget
from llmpq.plan.problem import ENDS, PHASES, Problem

# Times this close (relative) to the slowest resource's bind too.
_BINDING = 1e-9


def plan_body(problem: Problem, assignment: Assignment, strategy: str) -> dict[str, Any]:
    """Everything of plan.json but the certificate; the formula's predictions for all requests, the objective for one batch."""
    candidate = build(problem, assignment.order, assignment.batches)
    times = candidate.makespan(assignment.counts(problem.options), candidate.end(assignment.ends))
    omega = assignment.omega_sum(problem)
    runs, batches = problem.batches, assignment.batches
    total_s = times.total_ms * runs / 1000
    return {
        "strategy": strategy,
        "problem": problem.name,
        "problem_sha256": artifacts.body_digest(problem.document),
        "source": problem.document["source"],
        "schedule": problem.document["schedule"],
        **({"backend": problem.document["backend"]} if "backend" in problem.document else {}),
        "stages": [_stage(problem, candidate, assignment, j) for j in range(candidate.stages)],
        "micro_batch": {
            "prefill": batches.xi,
            "decode": batches.eta,
            "prefill_count": len(batches.prefill),
            "decode_count": len(batches.decode),
        },
        "predicted": {
            "prefill_s": times.prefill_ms * runs / 1000,
            "decode_s": times.decode_ms * runs / 1000,
            "total_s": total_s,
            "tokens_per_s": problem.requests * problem.new_tokens / total_s if total_s > 0 else None,
            "simulated_total_s": None,
        },
        "omega_sum": omega,
        "objective_ms": times.total_ms + problem.theta_ms * omega,
        "quality_budget_met": None if problem.quality_budget is None else within_budget(problem, omega),
        "binding": _binding(problem, candidate, assignment),
    }


def _stage(problem: Problem, candidate: Candidate, assignment: Assignment, j: int) -> dict[str, Any]:
    device, options = problem.devices[assignment.order[j]], assignment.stages[j]
    first, last = j == 0, j == candidate.stages - 1
    parts = [device.options[option] for option in options]
    embedding = device.embedding[assignment.ends[0]] if first else None
    head = device.head[assignment.ends[1]] if last else None
    ends = [part for part in (embedding, head) if part is not None]
    devices = [problem.devices[index] for index in assignment.order]
    kinds = {
        "weights": sum(part.resident_bytes for part in parts),
        "kv": sum(problem.kv_bytes[option] for option in options),
        "embedding": 0 if embedding is None else embedding.resident_bytes,
        "head": 0 if head is None else kept_head_bytes(problem, devices, assignment.ends),
        "workspace": int(candidate.workspace_bytes[j]),
    }

    def compute_ms(phase: str) -> float:
        size = assignment.batches.largest(phase)
        return device.overhead_ms[phase] + sum(part.ms[phase][size] for part in parts + ends)

    return {
        "device": device.name,
        "first_layer": sum(len(stage) for stage in assignment.stages[:j]),
        "options": list(options),
        "has_embedding": first,
        "has_head": last,
        "embedding_option": assignment.ends[0] if first else None,
        "head_option": assignment.ends[1] if last else None,
        "bytes": {**kinds, "total": sum(kinds.values()), "budget": device.memory_bytes},
        "stored_bytes": sum(part.stored_bytes for part in parts + ends),
        "prefill_ms": compute_ms("prefill"),
        "decode_ms": compute_ms("decode"),
    }


def _binding(problem: Problem, candidate: Candidate, assignment: Assignment) -> list[dict[str, Any]]:
    counts, end = assignment.counts(problem.options), candidate.end(assignment.ends)
    return [
        *_binding_memory(problem, candidate, assignment),
        *_binding_times(candidate, counts, end),
        *_binding_quality(problem, assignment),
    ]


def _binding_memory(problem: Problem, candidate: Candidate, assignment: Assignment) -> list[dict[str, Any]]:
    """A stage's memory binds when no layer of it, nor its embedding or head, could take an option of less damage in the bytes left."""
    used = candidate.used_bytes(assignment.counts(problem.options)) + candidate.end_bytes[candidate.end(assignment.ends)]
    slack = candidate.capacity - used
    found = []
    layer = 0
    for j, options in enumerate(assignment.stages):
        device = problem.devices[assignment.order[j]]
        row = {name: int(size) for name, size in zip(problem.options, candidate.layer_bytes[j].tolist(), strict=True)}
        steps = _end_steps(problem, candidate, assignment, j)
        for option in options:
            better = [name for name in device.options if problem.omega[name][layer] < problem.omega[option][layer]]
            steps += [row[name] - row[option] for name in better]
            layer += 1
        if steps and min(steps) > slack[j]:
            found.append({"stage": j, "what": "memory", "slack": int(slack[j])})
    return found


def _end_steps(problem: Problem, candidate: Candidate, assignment: Assignment, j: int) -> list[int]:
    """Bytes that stage j would need more for each pair of end options that is better for one end and leaves the other as it is."""
    now = candidate.end(assignment.ends)
    bytes_now, last = int(candidate.end_bytes[now, j]), candidate.stages - 1
    steps = []
    for k, pair in enumerate(candidate.ends):
        changed = [end for end in (0, 1) if pair[end] != assignment.ends[end]]
        if len(changed) == 1 and j == (0, last)[changed[0]] and candidate.end_omega[k] < candidate.end_omega[now]:
            steps.append(int(candidate.end_bytes[k, j]) - bytes_now)
    return steps


def _binding_times(candidate: Candidate, counts: np.ndarray, end: int) -> list[dict[str, Any]]:
    """The slowest stage or link of each phase, and the round trip where it sets the decode rounds' period."""
    found: list[dict[str, Any]] = []
    for phase in PHASES:
        times = candidate.times[phase]
        fixed_largest = times.fixed_largest + times.end_largest[end]
        stages = fixed_largest + times.fixed_rest + times.end_rest[end] + ((times.layer_largest + times.layer_rest) * counts).sum(axis=1)
        links = times.link_largest + times.link_rest
        slowest = float(max(stages.max(), links.max(initial=0.0)))
        if phase == "decode":
            trip = (
                float((fixed_largest + (times.layer_largest * counts).sum(axis=1)).sum() + times.link_largest.sum()) + candidate.return_ms
            )
            if trip > slowest * (1 + _BINDING) and candidate.new_tokens > 2:
                found.append({"stage": None, "what": "round_trip", "slack": 0.0})
                continue
        for what, values in ((phase, stages), (f"{phase}_link", links)):
            found += [{"stage": j, "what": what, "slack": 0.0} for j, value in enumerate(values) if value >= slowest * (1 - _BINDING)]
    return found


def _binding_quality(problem: Problem, assignment: Assignment) -> list[dict[str, Any]]:
    """The quality budget binds when no layer, embedding or head could take any option of more damage that its device offers."""
    if problem.quality_budget is None:
        return []
    slack = problem.quality_budget - assignment.omega_sum(problem)
    layer, steps = 0, []
    for j, options in enumerate(assignment.stages):
        for option in options:
            here = problem.omega[option][layer]
            others = (problem.omega[name][layer] - here for name in problem.devices[assignment.order[j]].options)
            steps += [step for step in others if step > 0]
            layer += 1
    device_of = {"embedding": problem.devices[assignment.order[0]].embedding, "head": problem.devices[assignment.order[-1]].head}
    for end, option in zip(ENDS, assignment.ends, strict=True):
        rises = (problem.end_omega[end][name] - problem.end_omega[end][option] for name in device_of[end])
        steps += [rise for rise in rises if rise > 0]
    return [{"stage": None, "what": "quality", "slack": max(slack, 0.0)}] if steps and min(steps) > slack else []
