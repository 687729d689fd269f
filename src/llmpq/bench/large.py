"""Clusters larger than the paper's: so many devices of a few types, so many layers, to see how planning time grows."""

from pathlib import Path
from typing import Any

import yaml

from llmpq.cost.catalogue import Shape
from llmpq.cost.paper import catalogue_problem

KINDS = ("t4", "v100-32g", "a100-40g", "a800-80g")
WORKLOAD = {"slots": 32, "prompt_tokens": 512, "new_tokens": 100}
# (hidden size, FFN size, heads) of OPT-66b, 30b, 13b, 6.7b, 2.7b and 1.3b.
WIDTHS = ((9216, 36864, 72), (7168, 28672, 56), (5120, 20480, 40), (4096, 16384, 32), (2560, 10240, 32), (2048, 8192, 32))
# Room that must be left beyond the layers at 4 bit, for the ends and for what a cut cannot fill.
SPARE = 1.05


def large_problem(config: Path, layers: int, devices: int, kinds: int, generation: str, objective: dict[str, float]) -> dict[str, Any]:
    """Body of problem.json: ``devices`` of the first ``kinds`` types in equal numbers (the first types get one more where it does not
    divide), one node a type, and a model with ``layers`` layers of the widest of WIDTHS that fits at 4 bit."""
    names = [KINDS[index % kinds] for index in range(devices)]
    members = [{"name": f"{name}-{index}", "device": name, "node": name} for index, name in enumerate(sorted(names))]
    tables = {name: yaml.safe_load((config / "device" / f"{name}.yaml").read_text(encoding="utf-8")) for name in set(names)}
    cluster = {"members": members, "ethernet_gbit_s": 100}
    name = f"{layers}x{devices}-{kinds}-{generation}"
    for hidden, ffn, heads in WIDTHS:
        shape = Shape(layers, hidden, ffn, False, heads, heads, 50272, 2050, True)
        body = catalogue_problem(name, f"{layers} layers {hidden} wide", shape, cluster, tables, WORKLOAD, generation, objective)
        if layers_that_fit(body) >= SPARE * layers:
            break
    return body


def layers_that_fit(body: dict[str, Any]) -> int:
    """How many layers at 4 bit, with their cache, the devices hold beside the smallest workspace."""
    found = 0
    for device in body["devices"]:
        room = device["memory_bytes"] - max(min(sizes.values()) for sizes in device["workspace_bytes"].values())
        found += max(room, 0) // (device["options"]["4"]["resident_bytes"] + body["kv_bytes_per_layer"])
    return int(found)
