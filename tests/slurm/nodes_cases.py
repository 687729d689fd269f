"""Serving a small real model on the nodes of the site: one case, run as a user of the site would, in a process on its head node."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from serve_cases import Case, requests
from slurm_site import Site

SITE = {"partition": "", "account": "", "qos": "", "interface": "", "options": []}
LENGTHS, LIMITS = [5, 9, 17, 12, 3, 30], [2, 40, 40, 3, 4, 40]
FINISH_EARLY = {"r0", "r3", "r4"}


def device(name: str, gpus: str, **changes: Any) -> dict[str, Any]:
    """A device type of the site: a processor core that stands for a GPU."""
    asks = {"partition": name, "gres": gpus, "constraint": "", "mem_mb": 1500, "runtime_min": 5}
    return {"name": name, "kind": "cpu", "source": "measured", "cores": 1, "slowdown": 1.0, "memory_mib": 8192, "slurm": asks, **changes}


def cluster(launch: str = "hetjob", slowdown: float = 1.0) -> dict[str, Any]:
    """Two T4s of one node and a V100 of another; every stage of a plan with devices d0, d1, d2 has one."""
    types = {"t4": device("t4", "gpu:t4:1", slowdown=slowdown), "v100": device("v100", "gpu:v100:1", slowdown=slowdown)}
    members = [
        {"name": "d0", "device": "t4", "cores": [], "node": "t4-0"},
        {"name": "d1", "device": "v100", "cores": [], "node": "v100-0"},
        {"name": "d2", "device": "t4", "cores": [], "node": "t4-0"},
    ]
    return {"name": "site", "launch": launch, "types": types, "members": members, "slurm": SITE, "link": {"delay_ms": 0.0}}


def case(folder: Path, checkpoint: Path, *, lengths: Sequence[int] = LENGTHS, **settings: Any) -> Case:
    """Three stages over both types."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Case(folder, checkpoint, requests(lengths, LIMITS[: len(lengths)]), [2, 2, 2], (2, 3), **{"timeout_s": 60, **settings})
    made.cluster = cluster()
    return made


def arguments(made: Case) -> list[str]:
    """The command that serves a case; what it needs is in ``call.json`` beside its plan."""
    from serve_cases import write_plan

    plan = write_plan(made.directory / "plan.json", made.body)
    call = [str(plan), None, str(made.workload), made.cluster, str(made.checkpoint), None, str(made.directory), made.settings]
    path = made.directory / "call.json"
    path.write_text(json.dumps(call), encoding="utf-8")
    program = "import json, sys; from llmpq.serve.batch import serve; serve(*json.load(open(sys.argv[1])))"
    return [sys.executable, "-u", "-c", program, str(path)]


def workers(site: Site) -> list[psutil.Process]:
    """Serving processes anywhere on the site."""
    found = []
    for each in psutil.process_iter():
        try:
            command = each.cmdline()
        except psutil.Error:
            continue
        if "llmpq.serve.worker" in command and "--task" in command and "srun" not in command[0]:
            found.append(each)
    return found


def launchers(made: Case) -> list[psutil.Process]:
    """The process that serves a case (not the programs that entered the site for it)."""
    call = str(made.directory / "call.json")
    return [each for each in psutil.process_iter() if _is(each, call)]


def _is(process: psutil.Process, call: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return call in command and command[0] == sys.executable
