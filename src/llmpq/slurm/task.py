"""One process of a job on nodes: which one it is, whom it meets, and that it ends with its launcher.

The launcher and the processes share a folder (llmpq.slurm.run): ``task-N.json`` says what Slurm's task N does, ``heartbeat`` that the
launcher is alive, ``rendezvous.json`` where the first process listens.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ServeError
from llmpq.heartbeat import watch

HEARTBEAT, RENDEZVOUS = "heartbeat", "rendezvous.json"
LOST = 4  # exit status of a process whose launcher is gone
_LOOK_S = 0.2


def task_file(folder: Path, number: int) -> Path:
    """What Slurm's task ``number`` does."""
    return folder / f"task-{number}.json"


def read_task(folder: Path) -> dict[str, Any]:
    """This process's job, with ``task_dir``, the folder.

    Its output goes to the job's ``log``, it sees its own device alone, and it ends when the launcher is gone.
    """
    number = int(os.environ["SLURM_PROCID"])
    job: dict[str, Any] = json.loads(task_file(folder, number).read_text(encoding="utf-8"))
    _log_to(Path(job["log"]))
    own_device(os.environ)
    watch(folder / HEARTBEAT, _launcher_is_gone)
    print(f"task {number} on {socket.gethostname()}, devices [{os.environ.get('CUDA_VISIBLE_DEVICES', '')}]", file=sys.stderr, flush=True)
    return {**job, "task_dir": str(folder)}


def own_device(environment: Any) -> None:
    """Of several devices that Slurm shows to all processes of a node, keep the one with this process's number there."""
    local, shown = int(environment.get("SLURM_LOCALID", 0)), environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(shown) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = shown[local % len(shown)]


def meet(folder: Path, first: bool, wait_s: float) -> dict[str, Any]:
    """Where the first process listens: ``host``, ``port``, and for itself the ``listener``'s descriptor.

    It binds the address under which the other nodes know its own, so that nothing listens beyond the cluster's network. Raises ServeError
    when nobody has said where within ``wait_s``.
    """
    place = folder / RENDEZVOUS
    if first:
        bound = socket.socket()
        bound.bind((own_address(os.environ), 0))
        bound.listen(128)
        host, port = bound.getsockname()
        artifacts.write_text(place, json.dumps({"host": host, "port": port}))
        return {"host": host, "port": port, "listener": bound.detach()}
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(place.read_text(encoding="utf-8")))
        time.sleep(_LOOK_S)
    raise ServeError(f"the first process did not say in {wait_s:g} s where it listens ({place}); is the folder shared by all nodes?")


def own_address(environment: Mapping[str, str]) -> str:
    """This node's address: that of its name in Slurm, or else of its host name."""
    names = [environment.get("SLURMD_NODENAME", ""), socket.gethostname()]
    for name in filter(None, names):
        with contextlib.suppress(OSError):
            return socket.gethostbyname(name)
    raise ServeError(f"this node's names have no address: {', '.join(filter(None, names))}; nodes must know each other by name")


def _log_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _launcher_is_gone() -> None:
    print("the launcher of this job is gone; stopping", file=sys.stderr, flush=True)
    os._exit(LOST)
