"""Judge of the ``offload`` block of a plan.json, from problem.json alone and apart from the code that prices it."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]
_RELATIVE = 1e-9
_BUFFERS = 2


def check_offload(problem: Json, plan: Json) -> Iterator[str]:
    """Every fault of the block: places, memory on device and host, streamed layers, times, objective, who wins."""
    block = plan["offload"]
    devices = {device["name"]: device for device in problem["devices"]}
    for stage in block["stages"]:
        if stage["device"] not in devices:
            yield f"offload is on device '{stage['device']}', which the problem does not have"
            return
    if sum(stage["layers"] for stage in block["stages"]) != problem["model"]["layers"]:
        yield f"offload places {sum(stage['layers'] for stage in block['stages'])} of {problem['model']['layers']} layers"
        return
    last = len(block["stages"]) - 1
    for j, stage in enumerate(block["stages"]):
        yield from _memory(problem, block, devices[stage["device"]], stage, j == 0, j == last)
    prefill, decode = _times_ms(problem, block, devices)
    batches = problem["workload"]["requests"] / problem["workload"]["slots"]
    ends = zip(("embedding", "head"), block["ends"], strict=True)
    omega = math.fsum(problem["omega"][block["option"]])
    omega += math.fsum(problem.get("end_omega", {}).get(end, {}).get(option, 0.0) for end, option in ends)
    objective = prefill + decode + problem["objective"].get("theta_ms", 0.0) * omega
    expected = {"prefill_s": prefill * batches / 1000, "decode_s": decode * batches / 1000, "omega_sum": omega, "objective_ms": objective}
    for key, value in expected.items():
        if not math.isclose(block[key], value, rel_tol=_RELATIVE, abs_tol=1e-12):
            yield f"offload.{key} is {block[key]}, recomputed {value}"
    wins = block["quality_budget_met"] is not False and objective < plan.get("objective_ms", math.inf) * (1 - _RELATIVE)
    if "objective_ms" in plan and block["wins"] != wins:
        yield f"offload.wins is {block['wins']}: its objective is {objective}, the plan's {plan['objective_ms']}"


def _memory(problem: Json, block: Json, device: Json, stage: Json, first: bool, last: bool) -> Iterator[str]:
    weights = device["options"][block["option"]]["resident_bytes"]
    given, precision = problem["kv_bytes_per_layer"], block["option"].partition("/kv")[2] or "16"
    cache = given[precision] if isinstance(given, Mapping) else given
    sizes = _sizes(problem, block)
    used = max(device["workspace_bytes"][phase][str(size)] for phase, listed in sizes.items() for size in listed)
    embedding = device["embedding"][block["ends"][0]]["resident_bytes"] if first else 0
    head = device["head"][block["ends"][1]]["resident_bytes"] if last else 0
    if first and last and block["ends"][0] == block["ends"][1]:
        whole = min(head, embedding) if problem.get("tied_embeddings", False) else 0
        head -= device["head"][block["ends"][1]].get("shared_bytes", whole)
    held = stage["layers"] - stage["streamed"] + (_BUFFERS if stage["streamed"] else 0)
    used += embedding + head + stage["layers"] * cache + held * weights
    if used > device["memory_bytes"]:
        yield f"offload: device '{device['name']}' needs {used} bytes and has {device['memory_bytes']}"
    if stage["streamed"] and stage["streamed"] * weights > device.get("host", {"memory_bytes": 0})["memory_bytes"]:
        yield f"offload: {stage['streamed']} layers do not fit in the host memory of device '{device['name']}'"


def _split(total: int, at_most: int) -> list[int]:
    parts = math.ceil(total / at_most)
    return [total // parts + (k < total % parts) for k in range(parts)]


def _sizes(problem: Json, block: Json) -> dict[str, list[int]]:
    decode = _split(problem["workload"]["slots"], block["micro_batch"]["decode"])
    return {"decode": decode, "prefill": [size for batch in decode for size in _split(batch, block["micro_batch"]["prefill"])]}


def _times_ms(problem: Json, block: Json, devices: Mapping[str, Json]) -> tuple[float, float]:
    links = {(link["from"], link["to"]): link for link in problem["links"]}
    names = [stage["device"] for stage in block["stages"]]
    tokens, passes = problem["workload"]["new_tokens"], {}
    for phase, sizes in _sizes(problem, block).items():
        resources = []
        length = problem["workload"]["prompt_tokens"] if phase == "prefill" else 1
        for j, stage in enumerate(block["stages"]):
            device = devices[stage["device"]]
            parts = [device["options"][block["option"]]] * stage["layers"]
            parts += [device["embedding"][block["ends"][0]]] * (j == 0) + [device["head"][block["ends"][1]]] * (j == len(names) - 1)
            fixed = device.get("overhead_ms", {}).get(phase, 0.0)
            stream = stage["streamed"] * parts[0]["resident_bytes"] / device["host"]["bytes_per_ms"] if stage["streamed"] else 0.0
            resources.append([max(fixed + math.fsum(part[f"{phase}_ms"][str(size)] for part in parts), stream) for size in sizes])
        for j, pair in enumerate(itertools.pairwise(names)):
            payload = [size * length * problem["activation_bytes_per_token"] for size in sizes]
            sends = [links[pair]["alpha_ms"] + each / links[pair]["bytes_per_ms"] for each in payload]
            if problem["overlapped_sends"]:
                resources.append(sends)
            else:
                resources[j] = [work + send for work, send in zip(resources[j], sends, strict=True)]
        largest = sizes.index(max(sizes))
        first = math.fsum(row[largest] for row in resources)
        drained = max(math.fsum(row) - row[largest] for row in resources)
        passes[phase] = (first, drained, max(math.fsum(row) for row in resources))
    prefill = passes["prefill"][0] + passes["prefill"][1]
    if tokens < 2:
        return prefill, 0.0
    back = 0.0
    if len(names) > 1:
        link = links[names[-1], names[0]]
        back = link["alpha_ms"] + max(_sizes(problem, block)["decode"]) * problem["token_bytes"] / link["bytes_per_ms"]
    first, drained, busiest = passes["decode"]
    return prefill, (tokens - 2) * max(busiest, first + back) + first + drained
