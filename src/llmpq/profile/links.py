"""Time the links of a cluster: one real process per device over torch.distributed (gloo), each pinned to its device's cores.

A row is the one-way time of a payload from the sender's call to the moment the receiver holds it, both read from the host's monotonic
clock, which processes of one machine share. On the nodes of a cluster, whose clocks differ, it is the time until a short answer has come
back, less half the round trip of a short message, and at least half of that time. Repeats are interleaved over pairs and payload sizes.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.processes import HOST, heed_signal, listener, signals
from llmpq.profile.statistics import summary_ms
from llmpq.slurm.run import Placement, nodes_job, tail
from llmpq.slurm.script import LAUNCHES

TIMEOUT_S = 120.0
WARMUP = 3


class LinkError(LlmpqError):
    """The processes that time a cluster's links could not be run."""


def profile_links(
    cluster: Mapping[str, Any], settings: Mapping[str, Any], out: str | Path, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time every ordered pair of the members of ``cluster`` and write a ``links`` artifact to ``out``; returns the document.

    ``settings`` are the ``profile`` group: ``link_bytes`` (payload sizes) and ``repeats``. ``hand_off`` is what receiving and
    sending cost a busy process per message. A cluster of one device gives no rows.
    Raises LinkError when a process dies or does not finish, with the end of its log.
    """
    started = time.perf_counter()
    members = list(cluster["members"])
    delay_ms = float((cluster.get("link") or {}).get("delay_ms", 0.0))
    sizes = sorted({int(size) for size in settings["link_bytes"]})
    if not sizes or sizes[0] < 1:
        raise LinkError(f"profile.link_bytes is {settings['link_bytes']}; it needs payload sizes of at least 1 byte")
    rows: list[dict[str, Any]] = []
    hand_off: dict[str, Any] = {}
    if len(members) > 1:
        progress(f"links of {cluster['name']}: {len(members)} processes, {len(sizes)} payload sizes")
        repeats = max(20, 4 * int(settings["repeats"]))
        job = {"sizes": sizes, "repeats": repeats, "warmup": WARMUP, "delay_ms": delay_ms, "world": len(members)}
        if cluster.get("launch", "local") in LAUNCHES:
            timed = _run_on_nodes(cluster, job, Path(out).parent / f"{cluster['name']}.nodes", progress)
        else:
            timed = _run_processes(members, job)
        hand_off = {"hand_off": summary_ms([seconds for found in timed for seconds in found["hand_off_seconds"]])}
        for row in (row for found in timed for row in found["rows"]):
            sender, receiver = members[row["from"]]["name"], members[row["to"]]["name"]
            rows.append({"from": sender, "to": receiver, "bytes": row["bytes"], **summary_ms(row["seconds"])})
    order = {member["name"]: index for index, member in enumerate(members)}
    rows.sort(key=lambda row: (order[row["from"]], order[row["to"]], row["bytes"]))
    source = "emulated" if any(device["source"] == "emulated" for device in cluster["types"].values()) else "measured"
    body = {"cluster": cluster["name"], "delay_ms": delay_ms, "seconds": round(time.perf_counter() - started, 3), **hand_off, "rows": rows}
    config = {"cluster": dict(cluster), "link_bytes": sizes, "repeats": settings["repeats"]}
    return artifacts.write(out, "links", body, source=source, config=config)


def _run_processes(members: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run a process per member and return what they found, by rank. None is left in any case, and no file: theirs have no names."""
    if away := [str(member["name"]) for member in members if member.get("address") or member.get("prefix")]:
        raise LinkError(f"cluster.members {', '.join(away)} have an address or a prefix: links to other hosts cannot be timed yet")
    running: list[_Process] = []
    with signals() as wake, listener(0, LinkError, "port") as rendezvous, contextlib.ExitStack() as files:
        meeting = {"host": HOST, "port": rendezvous.getsockname()[1], "listener": rendezvous.fileno()}
        try:
            for rank, member in enumerate(members):
                log, result = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
                job = {**settings, **meeting, "rank": rank, "cores": list(member.get("cores") or ()), "threads": 0, "out": result.fileno()}
                command = [sys.executable, "-m", "llmpq.profile.link_worker", str(os.getpid()), json.dumps(job)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
                shared = [result.fileno()] + ([rendezvous.fileno()] if rank == 0 else [])
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=shared, start_new_session=True
                )
                running.append(_Process(str(member["name"]), process, log, result))
            _wait(running, wake)
        finally:
            for each in running:
                each.process.kill()
                each.process.wait()
        return [each.found() for each in running]


def _run_on_nodes(
    cluster: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The same with the process of each member on its node of a Slurm cluster, all in one job; ``folder`` is removed in the end."""
    folder = folder.absolute()
    members = list(cluster["members"])
    placement = Placement(members, cluster["types"], cluster["launch"], cluster["slurm"])
    results = [folder / f"result-{rank}.json" for rank in range(len(members))]
    tasks = [
        {
            **settings,
            "rank": rank,
            "cores": [],
            "threads": cluster["types"][member["device"]]["cores"],
            "out": str(results[rank]),
            "log": str(folder / f"{member['name']}.log"),
        }
        for rank, member in enumerate(members)
    ]
    with nodes_job(f"links-{cluster['name']}", placement, tasks, "llmpq.profile.link_worker", folder, say) as (job, wait):
        began: float | None = None
        while not job.ended:
            wait()
            began = time.monotonic() if began is None and job.running else began
            if began is not None and time.monotonic() - began > TIMEOUT_S:
                raise LinkError(f"timing the links did not finish in {TIMEOUT_S:.0f} s; {job.failure()}{_tails(tasks)}")
        if not all(state.good for state in job.states) or not all(path.is_file() for path in results):
            raise LinkError(f"timing the links: {job.failure()}{_tails(tasks)}")
        found = [dict(json.loads(path.read_text(encoding="utf-8"))) for path in results]
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _tails(tasks: Sequence[Mapping[str, Any]]) -> str:
    return "".join(tail(Path(task["log"])) for task in tasks)


@dataclass(frozen=True)
class _Process:
    """The process of one device, what it says and where it writes its rows."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    result: IO[bytes]

    def tail(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", errors="replace")[-800:].strip()

    def found(self) -> dict[str, Any]:
        self.result.seek(0)
        return dict(json.load(self.result))


def _wait(running: Sequence[_Process], wake: int) -> None:
    """Return when all have finished well; raise LinkError as soon as one has failed or the time is up, and heed signals."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        codes = [each.process.poll() for each in running]
        for each, code in zip(running, codes, strict=True):
            if code not in (None, 0):
                raise LinkError(
                    f"timing the links: the process of device {each.name} ended with code {code}; the end of its log:\n{each.tail()}"
                )
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            raise LinkError(f"timing the links did not finish in {TIMEOUT_S:.0f} s; is something else using the loopback or the cores?")
        if select.select([wake], [], [], 0.05)[0]:
            heed_signal(wake)
