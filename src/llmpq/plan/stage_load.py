"""How busy and how full each stage of a plan is, beside the one that everything waits for."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmpq.plan.candidate import Assignment, Candidate, Floats, build
from llmpq.plan.problem import PHASES, Problem


def stage_loads(problem: Problem, assignment: Assignment, binding: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per stage: bytes used and free, ms of all its micro-batches per phase and as a share of the slowest stage, and what binds on it.

    For decode the time is that of one round. ``binds`` holds the entries of plan.json's ``binding`` that are about the stage or its link.
    """
    candidate = build(problem, assignment.order, assignment.batches)
    room = candidate.capacity - candidate.end_bytes[candidate.end(assignment.ends)]
    used = candidate.used_bytes(assignment.counts(problem.options))
    busy = {phase: stage_ms(problem, candidate, assignment, phase) for phase in PHASES}
    binding = list(binding)
    found = []
    for j, device in enumerate(assignment.order):
        options = assignment.stages[j]
        found.append({
            "stage": j,
            "device": problem.devices[device].name,
            "layers": len(options),
            "options": {option: options.count(option) for option in dict.fromkeys(options)},
            "memory_bytes": problem.devices[device].memory_bytes,
            "free_bytes": int(room[j] - used[j]),
            **{f"{phase}_ms": float(busy[phase][j]) for phase in PHASES},
            **{f"{phase}_share": float(busy[phase][j] / busy[phase].max()) if busy[phase].max() > 0 else 1.0 for phase in PHASES},
            "binds": [entry["what"] for entry in binding if entry["stage"] == j],
        })  # fmt: skip
    return found


def stage_ms(problem: Problem, candidate: Candidate, assignment: Assignment, phase: str) -> Floats:
    """Time of all micro-batches of a phase on each stage [N]; sends are in it where they block."""
    times, counts, end = candidate.times[phase], assignment.counts(problem.options), candidate.end(assignment.ends)
    fixed = times.fixed_largest + times.fixed_rest + times.end_largest[end] + times.end_rest[end]
    found: Floats = np.asarray(fixed + ((times.layer_largest + times.layer_rest) * counts).sum(axis=1))
    return found
