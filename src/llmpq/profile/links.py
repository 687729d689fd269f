"""Time the links of a cluster: one real process per device over torch.distributed (gloo), each pinned to its device's cores.

A row is the one-way time of a payload from the sender's call to the moment the receiver holds it, both read from the host's monotonic
clock, which processes of one machine share. Repeats are interleaved over pairs and payload sizes.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.profile.statistics import summary_ms

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
        timed = _run_processes(members, {"sizes": sizes, "repeats": repeats, "warmup": WARMUP, "delay_ms": delay_ms})
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_processes(members: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="llmpq-links-") as folder:
        processes, logs = [], []
        for rank, member in enumerate(members):
            job = {**settings, "rank": rank, "world": len(members), "port": port, "cores": list(member.get("cores") or ())}
            log = Path(folder) / f"{rank}.log"
            command = [sys.executable, "-m", "llmpq.profile.link_worker", json.dumps({**job, "out": str(Path(folder) / f"{rank}.json")})]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            with log.open("wb") as stream:
                processes.append(subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment))
            logs.append(log)
        try:
            _wait(processes, logs, [str(member["name"]) for member in members])
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(len(members))]


def _wait(processes: Sequence["subprocess.Popen[bytes]"], logs: Sequence[Path], names: Sequence[str]) -> None:
    """Return when all have finished well; raise LinkError as soon as one has failed or the time is up."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        codes = [process.poll() for process in processes]
        for name, log, code in zip(names, logs, codes, strict=True):
            if code not in (None, 0):
                tail = log.read_text(encoding="utf-8", errors="replace")[-800:].strip()
                raise LinkError(f"timing the links: the process of device {name} ended with code {code}; the end of its log:\n{tail}")
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            raise LinkError(f"timing the links did not finish in {TIMEOUT_S:.0f} s; is something else using the loopback or the cores?")
        time.sleep(0.05)
