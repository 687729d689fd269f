"""vLLM timed call by call: a program for vLLM's own environment, which :mod:`llmpq.vllm_serve.process` runs.

Its arguments are files as engine.py has them. ``shapes`` of the first are what is asked, each ``rows`` prompts of ``prompt_tokens`` that
make ``new_tokens``; ``lookups`` numbers of tokens whose embedding is timed by itself. Rounds go over all shapes in a new order each,
``rounds`` of them, or at least two until ``budget_s`` is over. The second is written at the end: ``version``, ``load_s``, ``cpu_s``
(processor seconds of vLLM's processes from their start), ``shapes`` (of each the ``calls`` as recorder.py has them, and ``peak_bytes``, by
which the worker grew at most in its first run) and ``lookups`` (seconds).
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # last: other modules here have names that the standard library has too
from engine import generate, group_cpu_s, load, read_job, write_answer

_LEAST_ROUNDS = 2


def main() -> None:
    job = read_job()
    network, found = load(job)
    shapes, draw = job["shapes"], random.Random(0)
    found["shapes"] = [{"calls": [], "peak_bytes": _peak(network, shape, job)} for shape in shapes]
    order, until = list(range(len(shapes))), time.monotonic() + job["budget_s"]
    for turn in range(job["rounds"]):
        if turn >= _LEAST_ROUNDS and time.monotonic() > until:
            break
        draw.shuffle(order)
        for index in order:
            found["shapes"][index]["calls"].append(_calls(network, shapes[index], job))
    (found["lookups"],) = network.collective_rpc("time_embedding", args=(job["lookups"], 5 * job["rounds"]))
    found["cpu_s"] = group_cpu_s()
    write_answer(found)


def _peak(network: Any, shape: dict[str, int], job: dict[str, Any]) -> int:
    """The first run of a shape, which also warms it up."""
    network.collective_rpc("begin_peak")
    _calls(network, shape, job)
    (peak,) = network.collective_rpc("end_peak")
    return int(peak)


def _calls(network: Any, shape: dict[str, int], job: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that the shape makes."""
    import vllm

    rows, length = shape["rows"], shape["prompt_tokens"]
    draw = random.Random(rows * length)
    prompts = [{"prompt_token_ids": [draw.randrange(job["vocab"]) for _ in range(length)]} for _ in range(rows)]
    wanted = vllm.SamplingParams(temperature=0.0, detokenize=False, max_tokens=shape["new_tokens"], ignore_eos=True)
    network.collective_rpc("begin_record")
    generate(network, prompts, wanted)
    (stage,) = network.collective_rpc("end_record")
    return list(stage["calls"])


if __name__ == "__main__":
    main()
