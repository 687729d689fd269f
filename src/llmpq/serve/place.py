"""What a plan alone says about where it runs: its devices, how many requests it keeps resident, and how long these may be."""

import os
from collections.abc import Mapping
from typing import Any

from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.serve.job import MIB, device_of, stage_kv_bytes, usable_bytes
from llmpq.slurm.run import Placement
from llmpq.slurm.script import LAUNCHES


def cluster_of(plan: Mapping[str, Any], cores: list[int] | None = None) -> dict[str, Any]:
    """A cluster for a plan that comes without one: each stage has its budget as memory and its share of this machine's ``cores``."""
    available = sorted(os.sched_getaffinity(0)) if cores is None else cores
    stages = plan["stages"]
    each = len(available) // len(stages)
    types = {stage["device"]: {"source": "measured", "memory_mib": stage["bytes"]["budget"] / MIB} for stage in stages}
    members = [
        {"name": stage["device"], "device": stage["device"], "cores": available[rank * each : (rank + 1) * each]}
        for rank, stage in enumerate(stages)
    ]
    return {"name": "plan", "types": types, "members": members}


def placement_of(plan: Mapping[str, Any], cluster: Mapping[str, Any]) -> Placement | None:
    """The nodes that a plan's stages are started on, in their order; None where they are processes of this machine.

    Raises ServeError for a cluster that is planned for but cannot be run.
    """
    launch = cluster.get("launch", "local")
    if launch == "local":
        return None
    if launch not in LAUNCHES:
        raise ServeError(f"cluster '{cluster['name']}' has launch '{launch}', so nothing can be served on it; use {', '.join(LAUNCHES)}")
    members = {member["name"]: member for member in cluster["members"]}
    chosen = [members[device_of(cluster, stage, rank)["name"]] for rank, stage in enumerate(plan["stages"])]
    return Placement(chosen, cluster["types"], launch, cluster["slurm"])


def slots_of(plan: Mapping[str, Any], problem: Mapping[str, Any] | None, requests: int = 0) -> int:
    """Requests that are resident at once: the problem's, where it is at hand, else all that the plan's micro-batches hold, or
    ``requests`` where these just make up as many micro-batches."""
    if problem is not None:
        return int(problem["workload"]["slots"])
    size, count = int(plan["micro_batch"]["decode"]), int(plan["micro_batch"]["decode_count"])
    return requests if -(-requests // size) == count else size * count


def longest_sequence(plan: Mapping[str, Any], cluster: Mapping[str, Any], spec: ModelSpec, slots: int) -> int:
    """Tokens (prompt and new) that each of ``slots`` sequences may have within the memory of every stage.

    The plan's KV cache and workspace are for its own prompts; both are taken to grow in proportion to the length, into what the
    stage's budget leaves. Weights and ends stay as they are.
    """
    longest = spec.max_context
    for rank, stage in enumerate(plan["stages"]):
        held = stage["bytes"]
        growing = held["kv"] + held["workspace"]
        planned = held["kv"] / stage_kv_bytes(spec, stage["options"], slots, 1)
        budget = min(held["budget"], usable_bytes(device_of(cluster, stage, rank)))
        if growing:
            longest = min(longest, int(planned * (budget - held["total"] + growing) / growing))
    return max(longest, 0)
