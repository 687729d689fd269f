"""One process of ``profile_links``: takes its place in the gloo group, times its pairs, writes the rows that it sent.

Started as ``python -m llmpq.profile.link_worker PARENT JSON``, or ``--task FOLDER`` on a node of a cluster; not meant to be called by hand.
"""

import datetime
import itertools
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmpq import artifacts
from llmpq.emulation import Emulator
from llmpq.processes import die_with
from llmpq.slurm.task import meet, read_task

IN_FLIGHT = 2
HAND_OFFS = 100
ROUND_TRIPS = 20
WAIT_S = 60.0
MODEL_BYTES = 64 * 2**20


def send_once(payload: torch.Tensor, receiver: int, answer_s: float | None = None) -> float:
    """Send ``payload``; returns the one-way seconds, from the call to the receiver's time stamp (same host, same clock).

    Where the receiver may be another host, ``answer_s`` is how long its answer takes, and what is left of the round trip is returned.
    """
    stamp = torch.zeros(1, dtype=torch.int64)
    start = time.monotonic_ns()
    dist.send(payload, receiver)
    dist.recv(stamp, receiver)
    if answer_s is None:
        return (int(stamp) - start) / 1e9
    return one_way((time.monotonic_ns() - start) / 1e9, answer_s)


def one_way(round_trip_s: float, answer_s: float) -> float:
    """Seconds of a round trip without its answer: half of it at least, since an answer is no longer than any payload."""
    return max(round_trip_s / 2, round_trip_s - answer_s)


def receive_once(payload: torch.Tensor, sender: int) -> None:
    """Receive into ``payload`` and answer with the time stamp."""
    dist.recv(payload, sender)
    dist.send(torch.tensor([time.monotonic_ns()], dtype=torch.int64), sender)


def answer_seconds(rank: int, world: int) -> dict[int, float]:
    """How long a short answer of each other process takes to this one: half the median of round trips."""
    short, found = torch.zeros(8, dtype=torch.uint8), {}
    for sender, receiver in itertools.permutations(range(world), 2):
        if rank == sender:
            found[receiver] = statistics.median(send_once(short, receiver, 0.0) for _ in range(ROUND_TRIPS)) / 2
        elif rank == receiver:
            for _ in range(ROUND_TRIPS):
                receive_once(short, sender)
    return found


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Time all pairs in turn; returns this rank's rows {from, to, bytes, seconds[]} as a sender."""
    rank, world = job["rank"], job["world"]
    answer_s = answer_seconds(rank, world) if "task_dir" in job else {}
    payloads = {size: torch.zeros(size, dtype=torch.uint8) for size in job["sizes"]}
    rows: dict[tuple[int, int], list[float]] = {}
    order = random.Random(0)  # the same in every process
    for repeat in range(job["warmup"] + job["repeats"]):
        for sender, receiver in itertools.permutations(range(world), 2):
            # Shuffled, because the first payload after a change of pair finds the processor asleep and would always be the same one.
            for size in order.sample(job["sizes"], len(job["sizes"])):
                payload = payloads[size]
                if rank == sender:
                    # An emulated link holds a message until its delay after it was sent, as the runtime's transport does.
                    seconds = max(send_once(payload, receiver, answer_s.get(receiver)), job["delay_ms"] / 1e3)
                    if repeat >= job["warmup"]:
                        rows.setdefault((receiver, size), []).append(seconds)
                elif rank == receiver:
                    receive_once(payload, sender)
    return [{"from": rank, "to": receiver, "bytes": size, "seconds": seconds} for (receiver, size), seconds in rows.items()]


def hand_off(rank: int, size: int, messages: int) -> list[float]:
    """Seconds that a process takes to receive a message and to send one, when the message is already there (ranks 0 and 1).

    They relay messages to each other, with buffers posted ahead as the runtime's transport has them, and stream through memory in between
    as a model does, so that the transport's code is as cold as after a call. A busy stage spends this between two calls.
    """
    incoming = [torch.zeros(size, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
    outgoing = [torch.zeros(size, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
    memory, peer, seconds = torch.zeros(MODEL_BYTES // 4), 1 - rank, []
    receives = [_begun(dist.irecv(buffer, peer)) for buffer in incoming]
    sends = [_begun(dist.isend(buffer, peer)) for buffer in outgoing]
    for index in range(messages):
        slot = index % IN_FLIGHT
        memory.add_(1.0)
        start = time.monotonic()
        receives[slot].wait()
        sends[slot].wait()
        outgoing[slot].copy_(incoming[slot])
        sends[slot] = _begun(dist.isend(outgoing[slot], peer))
        receives[slot] = _begun(dist.irecv(incoming[slot], peer))
        seconds.append(time.monotonic() - start)
    for work in (*receives, *sends):
        work.wait()
    return seconds


def _begun(work: dist.Work | None) -> dist.Work:
    if work is None:
        raise RuntimeError("this process is not in the group")
    return work


def main() -> None:
    """Read the job from the command line or from the folder that it names, and run it."""
    job = _job_of_launcher()
    Emulator(1.0, job["cores"], job["threads"]).pin()
    rank, world, wait = job["rank"], job["world"], datetime.timedelta(seconds=WAIT_S)
    place = meet(Path(job["task_dir"]), rank == 0, WAIT_S) if "task_dir" in job else job
    # Without a listener of its own the store listens on every address; torch 2.7 takes one without libuv alone.
    descriptor = {"master_listen_fd": place["listener"]} if rank == 0 else {}
    store = dist.TCPStore(place["host"], place["port"], world, rank == 0, wait, wait_for_workers=False, use_libuv=False, **descriptor)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=wait)
    rows = run(job)
    dist.barrier()
    handed = hand_off(rank, min(job["sizes"]), HAND_OFFS) if rank < 2 else []
    dist.barrier()
    dist.destroy_process_group()
    found = json.dumps({"rows": rows, "hand_off_seconds": handed[IN_FLIGHT:]})
    if "task_dir" in job:
        artifacts.write_text(job["out"], found)
        return
    with os.fdopen(job["out"], "w", encoding="utf-8") as out:
        out.write(found)


def _job_of_launcher() -> dict[str, Any]:
    if sys.argv[1] == "--task":
        return read_task(Path(sys.argv[2]))
    die_with(int(sys.argv[1]))
    return dict(json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
