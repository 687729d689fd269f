"""The batch script of one job over unequal nodes: a heterogeneous job with a component for each kind of node, or a list of named nodes."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHES = ("hetjob", "nodelist")


@dataclass(frozen=True)
class Component:
    """Nodes that ask for the same: ``tasks`` holds, node by node, the indices of the processes there; ``hosts`` the nodes' names, or none.

    ``device`` is the device type: ``slurm`` says what one of it asks for, ``cores`` how many processors.
    """

    device: Mapping[str, Any]
    tasks: tuple[tuple[int, ...], ...]
    hosts: tuple[str, ...] = ()


def components(members: Sequence[Mapping[str, Any]], types: Mapping[str, Mapping[str, Any]], launch: str) -> list[Component]:
    """How the processes of ``members`` (of a cluster, in this order) are spread over nodes.

    Members that name the same ``node`` share it, one without a name has a node of its own. With launch ``nodelist`` these are the nodes'
    real names, and all nodes make up one component, which asks for as many devices on each as the fullest needs.
    """
    nodes: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        nodes.setdefault(member.get("node") or f"#{index}", []).append(index)
    kind = {node: types[members[indices[0]]["device"]] for node, indices in nodes.items()}
    if launch == "nodelist":
        first = next(iter(kind.values()))
        return [Component(first, tuple(map(tuple, nodes.values())), tuple(nodes))]
    groups: dict[tuple[str, int], list[str]] = {}
    for node, indices in nodes.items():
        groups.setdefault((kind[node]["name"], len(indices)), []).append(node)
    return [Component(kind[names[0]], tuple(tuple(nodes[name]) for name in names)) for names in groups.values()]


def task_order(found: Sequence[Component]) -> list[int]:
    """The index of the process that Slurm's task 0, 1, … is: components in turn, node by node."""
    return [index for component in found for node in component.tasks for index in node]


def batch_script(
    name: str,
    found: Sequence[Component],
    site: Mapping[str, Any],
    command: Sequence[str],
    output: Path,
    hosts_file: Path,
) -> str:
    """The text for sbatch. ``site`` is the cluster's ``slurm`` group; ``command`` runs once for each process.

    The job is never requeued by Slurm: whoever waits for it decides, since it knows what is left to do.
    """
    lines = ["#!/bin/bash"]
    for number, component in enumerate(found):
        if number:
            lines.append("#SBATCH hetjob")
        lines += [f"#SBATCH {option}" for option in _options(component, site)]
        if number == 0:
            lines += [f"#SBATCH --job-name={name}", f"#SBATCH --output={output}", "#SBATCH --open-mode=append", "#SBATCH --no-requeue"]
    if site["interface"]:
        lines.append(f"export GLOO_SOCKET_IFNAME={shlex.quote(site['interface'])}")
    if found[0].hosts:
        lines.append(f"export SLURM_HOSTFILE={shlex.quote(str(hosts_file))}")
    run = " ".join(shlex.quote(part) for part in command)
    steps = [f"{_step(component, number, len(found))} {run}" for number, component in enumerate(found)]
    lines.append("exec srun " + " : ".join(steps))
    return "\n".join(lines) + "\n"


def hosts_text(found: Sequence[Component]) -> str:
    """The node of each task, one a line, for SLURM_HOSTFILE; empty where Slurm chooses the nodes."""
    return "".join(f"{host}\n" for component in found for host, node in zip(component.hosts, component.tasks, strict=False) for _ in node)


def times(gres: str, count: int) -> str:
    """``gres`` for ``count`` devices: gpu:t4:1 → gpu:t4:3, gpu → gpu:3."""
    name, _, number = gres.rpartition(":")
    return f"{name}:{int(number) * count}" if re.fullmatch(r"\d+", number) else f"{gres}:{count}"


def _options(component: Component, site: Mapping[str, Any]) -> list[str]:
    asks, most = component.device["slurm"], max(len(node) for node in component.tasks)
    partition = site["partition"] if component.hosts else asks["partition"] or site["partition"]
    options = [
        f"--partition={partition}" if partition else "",
        f"--account={site['account']}" if site["account"] else "",
        f"--qos={site['qos']}" if site["qos"] else "",
        f"--constraint={asks['constraint']}" if asks["constraint"] else "",
        f"--gres={times(asks['gres'], most)}" if asks["gres"] else "",
        f"--nodes={len(component.tasks)}",
        f"--ntasks={sum(len(node) for node in component.tasks)}",
        f"--cpus-per-task={component.device['cores']}",
        f"--mem={asks['mem_mb'] * most}M",
        f"--time={asks['runtime_min']}",
        f"--nodelist={','.join(component.hosts)}" if component.hosts else f"--ntasks-per-node={most}",
        *site["options"],
    ]
    return [option for option in options if option]


def _step(component: Component, number: int, count: int) -> str:
    group = f"--het-group={number} " if count > 1 else ""
    spread = "arbitrary" if component.hosts else "block"
    return f"--kill-on-bad-exit=1 {group}--cpus-per-task={component.device['cores']} --distribution={spread}"
