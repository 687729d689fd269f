"""Clusters larger than the paper's: so many devices of a few types, so many layers, to see how planning time grows."""

from pathlib import Path
from typing import Any

import yaml

from llmpq.cost.catalogue import Shape
from llmpq.cost.paper import catalogue_problem

KINDS = ("t4", "v100-32g", "a100-40g", "a800-80g")
WORKLOAD = {"slots": 32, "prompt_tokens": 512, "new_tokens": 100}


def large_problem(config: Path, layers: int, devices: int, kinds: int, generation: str, objective: dict[str, float]) -> dict[str, Any]:
    """Body of problem.json: ``devices`` of the first ``kinds`` types in equal numbers (the first types get one more where it does not
    divide), one node a type, and a model of OPT-66b's width with ``layers`` layers."""
    names = [KINDS[index % kinds] for index in range(devices)]
    members = [{"name": f"{name}-{index}", "device": name, "node": name} for index, name in enumerate(sorted(names))]
    tables = {name: yaml.safe_load((config / "device" / f"{name}.yaml").read_text(encoding="utf-8")) for name in set(names)}
    shape = Shape(layers, 9216, 36864, False, 72, 72, 50272, 2050, True)
    cluster = {"members": members, "ethernet_gbit_s": 100}
    name = f"{layers}x{devices}-{kinds}-{generation}"
    return catalogue_problem(name, f"opt-{layers}-layers", shape, cluster, tables, WORKLOAD, generation, objective)
