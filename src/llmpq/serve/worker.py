"""The process of one stage. Started by its launcher as ``python -m llmpq.serve.worker …``; not meant to be called by hand.

On the launcher's own machine (llmpq.serve.launch) it reads its job (JSON) from standard input, tells the launcher what happens through the
pipe whose descriptor is its second argument, and writes its log to standard error. It dies with its launcher, the process of the first
argument; the third is its rank, for whoever looks at the list of processes. On a node of a cluster (llmpq.serve.nodes, ``--task FOLDER``)
all of this goes through files of a folder that both share.
"""

import datetime
import gc
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.emulation import Emulator
from llmpq.errors import LlmpqError, ServeError
from llmpq.processes import die_with, interface_of
from llmpq.serve.events import EventWriter, event_path, events_file
from llmpq.serve.ledger import Ledger, anonymous_bytes
from llmpq.slurm.task import meet, own_address, read_task

if TYPE_CHECKING:
    from llmpq.serve.pipeline import Pipeline
    from llmpq.serve.stage import Stage
    from llmpq.serve.stops import Decode
    from llmpq.serve.transport import Receiver, Sender

_RING = 2  # hidden-state buffers at each end of a link: one moves while the other is computed
_ENDED_BY_ERROR = 3


def main() -> None:
    """Run the job; the exit status is 0 when all went well."""
    job, events = _task(Path(sys.argv[2])) if sys.argv[1] == "--task" else _piped(int(sys.argv[1]), int(sys.argv[2]))
    status = 0
    try:
        _run(job, events)
    except LlmpqError as error:
        print(f"error: {error}", file=sys.stderr)
        events.send("failed", message=str(error), expected=True, blames=getattr(error, "peer", None))
        status = _ENDED_BY_ERROR
    except Exception as error:
        traceback.print_exc()
        events.send("failed", message=f"{type(error).__name__}: {error}", expected=False, blames=None)
        status = 1
    sys.stderr.flush()
    # Receives that were posted ahead never complete; waiting for their clean-up could hang.
    os._exit(status)


def _piped(launcher: int, descriptor: int) -> tuple[dict[str, Any], EventWriter]:
    """The job and the pipe from a launcher on this machine."""
    die_with(launcher, _ENDED_BY_ERROR)
    return json.load(sys.stdin), EventWriter(descriptor)


def _task(folder: Path) -> tuple[dict[str, Any], EventWriter]:
    """The job and the file of events from a launcher elsewhere."""
    job = read_task(folder)
    return job, events_file(event_path(folder, job["rank"]))


def _run(job: dict[str, Any], events: EventWriter) -> None:
    emulator = Emulator(job["slowdown"], job["cores"], job["threads"])
    emulator.pin()
    import torch

    with torch.inference_mode():
        before = anonymous_bytes()
        started = time.perf_counter()
        ledger = Ledger(job["device"], job["budget_bytes"])
        stage = _load(job, emulator, ledger)
        events.send("loaded", seconds=round(time.perf_counter() - started, 3), digest_lines=stage.digest_lines)
        sender, receiver = _connect(job, stage)
        gc.collect()
        gc.freeze()  # the collector need not look at the model again
        report: dict[str, Any] = {}
        if job["rank"] == 0:
            from llmpq.serve.pipeline import Pipeline

            report = _drive(job, Pipeline(stage, sender, receiver), events)
        else:
            from llmpq.serve.pipeline import follow

            assert sender is not None
            assert receiver is not None
            follow(stage, receiver, sender)
        report |= _measured(stage, sender, receiver, ledger)
        events.send("done", **report, rss_growth=anonymous_bytes() - before)


def _load(job: dict[str, Any], emulator: Emulator, ledger: Ledger) -> "Stage":
    from llmpq.model.stage import StageModel
    from llmpq.serve.stage import Stage

    model = StageModel.load(
        job["checkpoint_dir"],
        job["quantised_dir"],
        first_layer=job["first_layer"],
        options=job["options"],
        embedding=job["embedding_option"],
        head=job["head_option"],
        on_bytes=ledger.reserve,
    )
    ledger.reserve("kv", job["kv_bytes"])
    cache = model.new_cache(job["slots"], job["capacity"])
    if cache.nbytes != ledger.taken["kv"]:
        raise ServeError(
            f"device {job['device']}: the KV cache takes {cache.nbytes:,} bytes, not the {ledger.taken['kv']:,} reserved for it"
        )
    # A plan's workspace holds the messages between the stages too; what is left of it is for the calls' temporaries.
    transport = _transport_bytes(job)
    ledger.reserve("transport", transport)
    ledger.reserve("workspace", max(job["workspace_bytes"] - transport, 0))
    return Stage(model, cache, emulator)


def _buffers(job: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(bytes, number) of the buffers for messages from the previous stage and for those to the next one."""
    from llmpq.serve.transport import message_bytes

    rank, stages = job["rank"], job["stages"]
    prefill_rows, decode_rows = job["sizes"]
    continuous = job["schedule"] == "continuous"
    prefill = message_bytes(prefill_rows, job["longest_prompt"], job["hidden"], scattered=continuous)
    hidden = max(prefill, message_bytes(decode_rows, 1, job["hidden"]))
    tokens = message_bytes(max(prefill_rows, decode_rows), 1, 1)
    # The first posts as many as can be under way at once, so that the last stage never waits for it to look: a prefill call for each slot
    # at most, beside a decode call for each micro-batch where they mix.
    calls = job["slots"] + (-(-job["slots"] // decode_rows) if continuous else 0)
    incoming = (tokens, calls) if rank == 0 else (hidden, _RING)
    outgoing = (tokens, 2 * _RING) if rank == stages - 1 else (hidden, _RING)
    return incoming, outgoing


def _transport_bytes(job: dict[str, Any]) -> int:
    return sum(math.prod(buffers) for buffers in _buffers(job)) if job["stages"] > 1 else 0


def _connect(job: dict[str, Any], stage: "Stage") -> tuple["Sender | None", "Receiver | None"]:
    """Join the other stages and set up the links to the next and from the previous one (the last stage's next is the first)."""
    rank, stages = job["rank"], job["stages"]
    if stages == 1:
        return None, None
    import torch.distributed as dist

    from llmpq.serve.transport import Receiver, Sender

    wait, on_node = datetime.timedelta(seconds=job["load_timeout_s"]), "task_dir" in job
    if not (on_node and "GLOO_SOCKET_IFNAME" in os.environ):  # gloo listens there, and nowhere else; a site may name its network
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(own_address(os.environ) if on_node else job["address"], ServeError)
    place = meet(Path(job["task_dir"]), rank == 0, job["load_timeout_s"]) if on_node else job
    descriptor = {"master_listen_fd": place["listener"]} if rank == 0 else {}
    store = dist.TCPStore(place["host"], place["port"], stages, rank == 0, wait, wait_for_workers=False, use_libuv=False, **descriptor)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=stages, timeout=wait)
    dist.barrier()
    incoming, outgoing = _buffers(job)
    patience = {"timeout_s": job["timeout_s"]}
    timing = {**patience, "delay_s": job["link_delay_s"]}
    receiver = Receiver((rank - 1) % stages, *incoming, **timing, took=stage.timeline.took)
    sender = Sender((rank + 1) % stages, *outgoing, **patience)
    dist.barrier()
    return sender, receiver


def _drive(job: dict[str, Any], pipeline: "Pipeline", events: EventWriter) -> dict[str, Any]:
    from llmpq.serve.continuous import ContinuousDriver
    from llmpq.serve.driver import Driver

    driver = (ContinuousDriver if job["schedule"] == "continuous" else Driver)(
        pipeline,
        slots=job["slots"],
        sizes=tuple(job["sizes"]),
        ends=job["ends"],
        finished=lambda records: events.send("finished", requests=records),
        progress=lambda prompts, tokens: events.send("progress", prompts=prompts, tokens=tokens),
        decode=_decoder(job),
    )
    driver.warm_up(job["requests"])
    events.send("warm")
    pipeline.zero_counters()
    origin = time.perf_counter()
    driver.serve(job["requests"])
    pipeline.stop()
    clock = driver.clock
    return {"origin_s": origin, "prefill_s": clock.prefill_s, "decode_s": clock.decode_s, "tokens": clock.tokens}


def _decoder(job: dict[str, Any]) -> "Decode | None":
    """The checkpoint's tokenizer is loaded here only where a stop string has to be looked for."""
    if not any(request.get("stop") for request in job["requests"]):
        return None
    from llmpq.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(job["checkpoint_dir"])
    return lambda tokens: str(tokenizer.decode(tokens))


def _measured(stage: "Stage", sender: "Sender | None", receiver: "Receiver | None", ledger: Ledger) -> dict[str, Any]:
    return {
        **stage.timeline.report(),
        "send_s": sender.seconds if sender else 0.0,
        "wait_s": receiver.seconds if receiver else 0.0,
        "bytes": ledger.taken,
    }


if __name__ == "__main__":
    main()
