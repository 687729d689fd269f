"""From a plan, a cluster and requests to one job per stage: everything checked before a process starts."""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.emulation import shared_core_quota
from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.processes import HOST
from llmpq.quant.bytes import kv_layer_bytes
from llmpq.quant.options import END_OPTIONS, layer_option

MIB = 1 << 20
SCHEDULES = ("barrier", "continuous")
ORDERS = ("request", "finished")


@dataclass(frozen=True)
class Settings:
    """How to serve. Seconds, and rows of the KV cache; ``margins`` keeps every token's top-2 margin.

    The stages meet at ``port`` (0: any free one) of ``address``, which is the launcher's; another than the loopback is for stages on other
    hosts.

    Of a file of JSON lines: ``max_new_tokens`` is for requests that name none, ``seed`` for the seeds of those that have none, ``order``
    that of the results (request or finished).
    """

    slots: int
    ignore_eos: bool = False
    schedule: str = "barrier"
    timeout_s: float = 120.0
    load_timeout_s: float = 600.0
    max_restarts: int = 0
    address: str = HOST
    port: int = 0
    margins: bool = False
    max_new_tokens: int = 256
    seed: int = 0
    order: str = "request"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ServeError(f"serve.schedule is '{self.schedule}'; this runtime knows {', '.join(SCHEDULES)}")
        if self.slots < 1:
            raise ServeError(f"workload.slots is {self.slots}; at least one request must be resident")
        if not (self.timeout_s > 0 and self.load_timeout_s > 0):
            raise ServeError(f"serve.timeout_s ({self.timeout_s}) and serve.load_timeout_s ({self.load_timeout_s}) must be positive")
        if self.max_new_tokens < 1:
            raise ServeError(f"--max-new-tokens {self.max_new_tokens}: a request makes at least one token")
        if self.order not in ORDERS:
            raise ServeError(f"the order of the results is '{self.order}'; known: {', '.join(ORDERS)}")
        if not 0 <= self.port <= 65535:
            raise ServeError(f"backend.port is {self.port}; a port is 0 (any free one) to 65535")
        _check_address(self.address, "backend.address")


def run_settings(groups: Mapping[str, Mapping[str, Any]], experiment: str, **overrides: Any) -> dict[str, Any]:
    """The settings of ``serve`` from the configuration groups serve, workload and backend: the same for the command line and the
    workflow. ``overrides`` replace single ones."""
    return {
        **{key: value for key, value in groups["serve"].items() if key != "name"},
        **{key: groups["workload"][key] for key in ("slots", "ignore_eos")},
        **{key: value for key, value in groups["backend"].items() if key != "name"},
        "backend": groups["backend"]["name"],
        "experiment": experiment,
        **overrides,
    }


def check_requests(requests: Sequence[Mapping[str, Any]], spec: ModelSpec, source: Path) -> None:
    """Refuse requests that this model cannot serve: raises ServeError naming the request."""
    seen = set()
    for request in requests:
        where = f"{source}: request {request['id']!r}"
        if request["id"] in seen:
            raise ServeError(f"{where} appears twice; ids must differ")
        seen.add(request["id"])
        largest = max(request["prompt_tokens"])
        if largest >= spec.vocab:
            raise ServeError(f"{where}: token {largest} is not in the model's vocabulary of {spec.vocab}")
        total = len(request["prompt_tokens"]) + request["max_new_tokens"]
        if total > spec.max_context:
            raise ServeError(f"{where}: prompt and new tokens are {total} together, the model takes {spec.max_context}")


def check_problem(plan: Mapping[str, Any], problem: Mapping[str, Any], plan_path: Path, problem_path: Path) -> None:
    """Refuse a plan that was made for another problem: raises ServeError."""
    if plan["problem_sha256"] != artifacts.body_digest(problem):
        raise ServeError(f"{plan_path} was made for another problem than {problem_path}; plan again")


def check_plan(plan: Mapping[str, Any], spec: ModelSpec, settings: Settings, source: Path) -> None:
    """Refuse a plan whose stages do not make up this model once, in order, or that is for other slots or unknown end options.

    Raises ServeError.
    """
    slots = settings.slots
    size, count = plan["micro_batch"]["decode"], plan["micro_batch"]["decode_count"]
    if -(-slots // size) != count:
        raise ServeError(
            f"{source}: {count} decode micro-batches of at most {size} do not make up {slots} slots; plan again for this workload"
        )
    layer = 0
    for number, stage in enumerate(plan["stages"]):
        where = f"{source}: stage {number} ({stage['device']})"
        if stage["first_layer"] != layer or not stage["options"]:
            raise ServeError(
                f"{where} begins at layer {stage['first_layer']} with {len(stage['options'])} layers; layer {layer} should come next"
            )
        layer += len(stage["options"])
        first, last = number == 0, number == len(plan["stages"]) - 1
        if stage["has_embedding"] != first or stage["has_head"] != last:
            raise ServeError(f"{where}: the embedding belongs to the first stage and the head to the last, and to no other")
        for end in ("embedding", "head"):
            option, known = stage[f"{end}_option"], END_OPTIONS[end]
            if stage[f"has_{end}"] and option not in known:
                found = f"the plan keeps the {end} at option {option}, this runtime knows {', '.join(known)}"
                raise ServeError(f"{where}: {found}; offer the planner these alone")
    if layer != spec.layers:
        raise ServeError(f"{source}: the plan has {layer} layers, the model {spec.layers}; plan again for this model")


def stage_jobs(
    plan: Mapping[str, Any],
    cluster: Mapping[str, Any],
    spec: ModelSpec,
    requests: Sequence[Mapping[str, Any]],
    settings: Settings,
    directories: Mapping[str, str | list[str] | None],
) -> list[dict[str, Any]]:
    """One job per stage for llmpq.serve.worker, without the requests.

    ``requests`` are all of the workload's (also those already finished), so that a re-run has the same cache. Raises ServeError when a
    stage's device is not in the cluster, is out of the others' reach, or its budget is smaller than what the plan puts there.
    """
    capacity = max(len(request["prompt_tokens"]) + request["max_new_tokens"] for request in requests)
    shared = {
        "stages": len(plan["stages"]),
        "slots": settings.slots,
        "schedule": settings.schedule,
        "capacity": capacity,
        "longest_prompt": max(len(request["prompt_tokens"]) for request in requests),
        "sizes": [min(plan["micro_batch"][phase], settings.slots) for phase in ("prefill", "decode")],
        "hidden": spec.hidden,
        "ends": [] if settings.ignore_eos else list(spec.eos_token_ids),
        "timeout_s": settings.timeout_s,
        "load_timeout_s": settings.load_timeout_s,
        "host": settings.address,
        "link_delay_s": float((cluster.get("link") or {}).get("delay_ms", 0.0)) / 1e3,
        **directories,
    }
    jobs = []
    for rank, stage in enumerate(plan["stages"]):
        device = device_of(cluster, stage, rank)
        last_layer = stage["first_layer"] + len(stage["options"]) - 1
        jobs.append(
            {
                **shared,
                **{key: stage[key] for key in ("device", "first_layer", "options", "embedding_option", "head_option")},
                "rank": rank,
                "title": f"stage {rank} ({stage['device']}, layers {stage['first_layer']}–{last_layer})",
                "slowdown": float(device.get("slowdown", 1.0)),
                "cores": list(device.get("cores") or ()) if isinstance(device.get("cores"), (list, tuple)) else [],
                "kv_bytes": stage_kv_bytes(spec, stage["options"], settings.slots, capacity),
                "address": _address(device, settings.address),
                "prefix": list(device.get("prefix") or ()),
                "threads": 0,
                "budget_bytes": _budget(stage, device),
                "workspace_bytes": stage["bytes"]["workspace"],
            }
        )
    return jobs


def stage_kv_bytes(spec: ModelSpec, options: Sequence[str], slots: int, capacity: int) -> int:
    """Bytes of the caches of layers at ``options`` for ``slots`` sequences of up to ``capacity`` tokens."""
    return sum(kv_layer_bytes(spec, slots, capacity, layer_option(option).kv) for option in options)


def device_of(cluster: Mapping[str, Any], stage: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The cluster's device for a stage, with all that its type says; raises ServeError where it has none of that name."""
    devices = {member["name"]: {**cluster["types"][member["device"]], **member} for member in cluster["members"]}
    if stage["device"] not in devices:
        raise ServeError(f"stage {rank} is planned for device {stage['device']}, the cluster has {', '.join(devices)}")
    return devices[stage["device"]]


def usable_bytes(device: Mapping[str, Any]) -> float:
    """What a device's memory leaves to a stage."""
    return float((device["memory_mib"] - device.get("reserve_mib", 0)) * MIB)


def speed_claimed(jobs: Sequence[Mapping[str, Any]], cores: int | None = None) -> bool:
    """Whether the run's speed means anything: no more busy stages than ``cores`` here, and no core asked for more than it can give."""
    return len(jobs) <= (cores or len(os.sched_getaffinity(0))) and not shared_core_quota(jobs)


def _address(device: Mapping[str, Any], host: str) -> str:
    """Where a stage listens: at its device's ``address``, or that of the rendezvous ``host``. ServeError where others cannot reach it."""
    address = str(device.get("address") or host)
    key = f"cluster.members[{device['name']}].address"
    _check_address(address, key)
    if ipaddress.ip_address(host).is_loopback and not ipaddress.ip_address(address).is_loopback:
        reach = "which only this host reaches; give an address of this host that the others reach too"
        raise ServeError(f"{key} is {address}, but the stages meet on {host} (backend.address), {reach}")
    return address


def _check_address(address: str, key: str) -> None:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise ServeError(f"{key} is '{address}'; expected an IPv4 address such as {HOST}") from None


def _budget(stage: Mapping[str, Any], device: Mapping[str, Any]) -> int:
    """The smaller of what the plan counted on and what the device has now, in bytes; ServeError when the planned bytes exceed it."""
    budget = int(min(stage["bytes"]["budget"], usable_bytes(device)))
    missing = stage["bytes"]["total"] - budget
    if missing > 0:
        raise ServeError(
            f"device {stage['device']}: the plan puts {stage['bytes']['total']:,} bytes there, {missing:,} bytes are missing "
            f"(budget {budget:,}); give the device more memory or plan again"
        )
    return budget
