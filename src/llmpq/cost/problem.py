"""problem.json: everything the planner needs, as numbers, from cost fits, links, indicator, cluster, workload and planner settings."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.cost.latency import NATIVE, LatencyModel
from llmpq.cost.link import fit_links
from llmpq.cost.tables import TOKEN_BYTES, Shape, device_tables, scheduler_ms
from llmpq.errors import ArtifactError, ConfigError
from llmpq.model.spec import ModelSpec, RopeSpec
from llmpq.quant import bytes as quant_bytes
from llmpq.quant import vllm_bytes
from llmpq.quant.options import DEFAULT_KV, OUTLIER_COLUMNS, layer_option, layer_options, options_of_end, weight_option

ACTIVATION_BYTES = 4  # hidden states travel between stages in fp32
REFERENCE_OPTION = "4"


def build_problem(
    *,
    name: str,
    model: Mapping[str, Any],
    cluster: Mapping[str, Any],
    workload: Mapping[str, Any],
    planner: Mapping[str, Any],
    options: Sequence[str],
    costs: Mapping[str, Mapping[str, Any]],
    links: Mapping[str, Any],
    indicator: Mapping[str, Any],
    schedule: str = "barrier",
    end_options: Sequence[str] = ("16",),
    kv_options: Sequence[str] = (DEFAULT_KV,),
    outlier_columns: int = OUTLIER_COLUMNS,
    backend: str = NATIVE,
) -> dict[str, Any]:
    """Body of ``problem.json``.

    ``model`` is the ``model`` artifact (or any mapping with ``name`` and ``spec``); ``cluster``, ``workload`` and ``planner`` are groups of
    the configuration, ``options`` and ``outlier_columns`` the quantizer's, ``end_options`` and ``kv_options`` the model's; ``costs`` are by
    device type, of profiles through ``backend``. Times are milliseconds per layer and micro-batch, for decode means over the contexts.
    Raises ArtifactError for an artifact of another model, device, cluster or backend or without an option, ConfigError or ModelError for a
    workload that the model cannot hold.
    """
    spec = _spec(model)
    _check_workload(spec, workload)
    _check_artifacts(str(model["name"]), cluster, costs, links, indicator, backend)
    if backend != NATIVE:
        planner = _as_vllm_decodes(planner, int(workload["slots"]), len(cluster["members"]))
    shape = _shape(spec, cluster, workload, planner, links, options, end_options, kv_options, outlier_columns, schedule, backend)
    devices, notes = _devices(spec, cluster, costs, shape)
    used = [option for option in shape.options if any(option in device["options"] for device in devices)]
    return {
        "name": name,
        **({"description": "; ".join(notes)} if notes else {}),
        "source": _source(cluster["types"][member["device"]]["source"] for member in cluster["members"]),
        "model": {"name": model["name"], "layers": spec.layers},
        "workload": {key: int(workload[key]) for key in ("requests", "slots", "prompt_tokens", "new_tokens")},
        "schedule": schedule,
        **_of_vllm(cluster, costs, shape),
        "overlapped_sends": True,
        "lengths": {"prefill": shape.prompt_lengths, "decode": shape.context_lengths},
        "options": used,
        "end_options": list(end_options),
        "reference_option": REFERENCE_OPTION,
        **_listed_sizes(planner),
        "kv_bytes_per_layer": _kv_bytes(spec, workload, used) if backend == NATIVE else _vllm_kv_bytes(spec, workload),
        "activation_bytes_per_token": shape.token_activation_bytes,
        "token_bytes": TOKEN_BYTES,
        "devices": devices,
        "links": _links(cluster, links),
        "omega": _omega(indicator, spec.layers, [*used, REFERENCE_OPTION]),
        "end_omega": _end_omega(indicator, end_options),
        "objective": {key: float(value) for key, value in planner["objective"].items() if value is not None},
    }


def _shape(
    spec: ModelSpec,
    cluster: Mapping[str, Any],
    workload: Mapping[str, Any],
    planner: Mapping[str, Any],
    links: Mapping[str, Any],
    options: Sequence[str],
    end_options: Sequence[str],
    kv_options: Sequence[str],
    outlier_columns: int,
    schedule: str,
    backend: str,
) -> Shape:
    return Shape(
        prompt_tokens=int(workload["prompt_tokens"]),
        new_tokens=int(workload["new_tokens"]),
        sizes=_tabulated(int(workload["slots"]), planner, schedule),
        token_activation_bytes=spec.hidden * ACTIVATION_BYTES,
        devices=len(cluster["members"]),
        options=layer_options(options, kv_options),
        end_options=end_options,
        outlier_columns=outlier_columns,
        hand_off_ms=links["hand_off"]["p50_ms"] if "hand_off" in links and backend == NATIVE else 0.0,
        backend=backend,
    )


def _as_vllm_decodes(planner: Mapping[str, Any], slots: int, devices: int) -> dict[str, Any]:
    """The planner's settings with the decode micro-batches that vLLM makes of ``slots``: of n stages each has an n-th of them under way."""
    listed = planner.get("micro_batches") or {}
    sizes = sorted({math.ceil(slots / stages) for stages in range(1, min(devices, slots) + 1)})
    return {**planner, "micro_batches": {**listed, "decode": sizes}}


def _of_vllm(cluster: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]], shape: Shape) -> dict[str, Any]:
    """``backend`` and ``scheduler_ms`` where the times are those of vLLM; its scheduler takes as long as beside the slowest device."""
    if shape.backend == NATIVE:
        return {}
    found = [scheduler_ms(LatencyModel(costs[member["device"]]), shape) for member in cluster["members"]]
    return {"backend": shape.backend, "scheduler_ms": max(found)}


def _vllm_kv_bytes(spec: ModelSpec, workload: Mapping[str, Any]) -> int:
    longest = int(workload["prompt_tokens"]) + int(workload["new_tokens"])
    return vllm_bytes.cache_bytes(spec, int(workload["slots"]), longest, "float32")


def _listed_sizes(planner: Mapping[str, Any]) -> dict[str, Any]:
    """{"micro_batches": …} where the planner's settings restrict them."""
    listed = {phase: [int(size) for size in found] for phase, found in (planner.get("micro_batches") or {}).items() if found}
    return {"micro_batches": listed} if listed else {}


def _devices(
    spec: ModelSpec, cluster: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]], shape: Shape
) -> tuple[list[dict[str, Any]], list[str]]:
    """Tables of all members, and what of the options they are not offered."""
    tables: list[dict[str, Any]] = []
    notes: list[str] = []
    for member in cluster["members"]:
        kind, cost = cluster["types"][member["device"]], costs[member["device"]]
        table, dropped = device_tables(spec, member, kind, LatencyModel(cost), cost, shape)
        tables.append(table)
        notes.extend(f"{member['name']}: {note}" for note in dropped)
    return tables, notes


def micro_batch_sizes(slots: int, listed: Mapping[str, Sequence[int] | None]) -> list[int]:
    """Every size a candidate micro-batch or prefill chunk can have, ascending.

    ``slots`` requests in m balanced micro-batches have sizes ceil and floor of slots/m; each decode micro-batch is cut in the same way
    into prefill chunks. ``listed`` may restrict the largest sizes, by phase; null means every distinct ceil(slots/m).
    """
    decode = _balanced(slots, listed.get("decode"))
    prefill: set[int] = set()
    for size in decode:
        prefill |= _balanced(size, listed.get("prefill"))
    return sorted(decode | prefill)


def _tabulated(slots: int, planner: Mapping[str, Any], schedule: str) -> list[int]:
    """The sizes of the tables: the candidates', and under the continuous schedule, which prefills any number of rows, powers of two."""
    sizes = micro_batch_sizes(slots, planner.get("micro_batches") or {})
    powers = [2**power for power in range(slots.bit_length())] if schedule == "continuous" else []
    return sorted({*sizes, *powers})


def _balanced(total: int, largest: Sequence[int] | None) -> set[int]:
    counts = range(1, total + 1) if not largest else {math.ceil(total / min(int(size), total)) for size in largest}
    return {math.ceil(total / count) for count in counts} | {total // count for count in counts}


def _spec(model: Mapping[str, Any]) -> ModelSpec:
    found = model["spec"]
    if isinstance(found, ModelSpec):
        return found
    rope = RopeSpec(**found["rope"]) if found.get("rope") else None
    return ModelSpec(**{**found, "rope": rope, "eos_token_ids": tuple(found.get("eos_token_ids", ()))})


def _check_workload(spec: ModelSpec, workload: Mapping[str, Any]) -> None:
    spec.check_context(int(workload["prompt_tokens"]) + int(workload["new_tokens"]))
    if int(workload["slots"]) > int(workload["requests"]):
        raise ConfigError(f"workload: {workload['slots']} slots for {workload['requests']} requests; make workload.slots smaller")


def _check_artifacts(
    model: str,
    cluster: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, Any]],
    links: Mapping[str, Any],
    indicator: Mapping[str, Any],
    backend: str,
) -> None:
    for member in cluster["members"]:
        kind = member["device"]
        if kind not in costs:
            raise ArtifactError(f"no cost artifact for device type '{kind}' of member {member['name']}; profile that device")
        cost, slowdown = costs[kind], float(cluster["types"][kind].get("slowdown", 1.0))
        for key, expected in (("device", kind), ("model", model), ("slowdown", slowdown), ("backend", backend)):
            found = cost.get(key, NATIVE)
            if found != expected:
                through = f" with backend {backend}" if key == "backend" else ""
                told = f"key '{key}' is {found!r}, expected {expected!r}; profile it again{through}"
                raise ArtifactError(f"cost given for device {kind}: {told}")
    if links["cluster"] != cluster.get("name", links["cluster"]):
        raise ArtifactError(f"links: key 'cluster' is {links['cluster']!r}, expected {cluster['name']!r}; time this cluster's links")
    if indicator["model"] != model:
        raise ArtifactError(f"indicator: key 'model' is {indicator['model']!r}, expected {model!r}; compute this model's indicator")


def _links(cluster: Mapping[str, Any], links: Mapping[str, Any]) -> list[dict[str, Any]]:
    fitted = {(row["from"], row["to"]): row for row in fit_links(links)}
    rows = []
    names = [member["name"] for member in cluster["members"]]
    for sender in names:
        for receiver in names:
            if sender == receiver:
                continue
            row = fitted.get((sender, receiver))
            if row is None:
                raise ArtifactError(f"links of {links['cluster']}: no rows from {sender} to {receiver}; time the links again")
            rows.append({key: row[key] for key in ("from", "to", "alpha_ms", "bytes_per_ms")})
    return rows


def _omega(indicator: Mapping[str, Any], layers: int, options: Iterable[str]) -> dict[str, list[float]]:
    found = {(row["option"], int(row["layer"])): float(row["omega"]) for row in indicator["rows"]}
    tables: dict[str, list[float]] = {}
    for option in dict.fromkeys(options):
        missing = [layer for layer in range(layers) if (option, layer) not in found]
        if missing and option not in ("16", "32"):
            raise ArtifactError(f"indicator: no omega for layer {missing[0]}, option '{option}'; quantise that option and run it again")
        tables[option] = [found.get((option, layer), 0.0) for layer in range(layers)]
    return tables


def _end_omega(indicator: Mapping[str, Any], options: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {(row["end"], row["option"]): float(row["omega"]) for row in indicator["ends"]}
    tables: dict[str, dict[str, float]] = {}
    for end in quant_bytes.ENDS:
        offered = options_of_end(end, options)
        missing = [option for option in offered if (end, option) not in found and weight_option(option).quantised]
        if missing:
            raise ArtifactError(f"indicator: no omega for the {end} at option '{missing[0]}'; quantise the ends and run it again")
        tables[end] = {option: found.get((end, option), 0.0) for option in offered}
    return tables


def _kv_bytes(spec: ModelSpec, workload: Mapping[str, Any], options: Sequence[str]) -> int | dict[str, int]:
    """Bytes of one layer's cache for all slots: one number where all options keep it at 16 bits, else by precision."""
    slots, capacity = int(workload["slots"]), int(workload["prompt_tokens"]) + int(workload["new_tokens"])
    found = {kv: int(quant_bytes.kv_layer_bytes(spec, slots, capacity, kv)) for kv in sorted({layer_option(name).kv for name in options})}
    return found[DEFAULT_KV] if list(found) == [DEFAULT_KV] else found


def _source(sources: Iterable[str]) -> str:
    """The least real of the devices' sources: one catalogue device makes the whole problem a simulated one."""
    order = ("measured", "emulated", "simulated", "catalogue")
    return max(sources, key=order.index)


def write_problem(out: str | Path, paths: Mapping[str, Any], *, notes: Sequence[str] = (), **values: Any) -> dict[str, Any]:
    """Read the artifacts named in ``paths`` and write ``problem.json``; returns the document.

    ``paths``: ``model``, ``links``, ``indicator`` (files) and ``costs`` (file by device type). ``values``: the other arguments of
    ``build_problem`` (name, cluster, workload, planner, options, schedule). ``notes`` come first in the description.
    """
    costs = {kind: artifacts.read(path, "cost") for kind, path in paths["costs"].items()}
    model, links = artifacts.read(paths["model"], "model"), artifacts.read(paths["links"], "links")
    indicator = artifacts.read(paths["indicator"], "indicator")
    body = build_problem(model=model, costs=costs, links=links, indicator=indicator, **values)
    if notes:
        body["description"] = "; ".join([*notes, *([body["description"]] if "description" in body else [])])
    inputs = [paths["model"], paths["links"], paths["indicator"], *paths["costs"].values()]
    return artifacts.write(out, "problem", body, source=body["source"], inputs=inputs, config=dict(values))
