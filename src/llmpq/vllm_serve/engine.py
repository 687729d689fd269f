"""vLLM at work: a program for vLLM's own environment, which :mod:`llmpq.vllm_serve.process` runs.

Its two arguments are files. The first is a JSON object: ``model`` (the exported checkpoint), ``engine`` (arguments of vLLM's engine by
their names), ``environment`` (variables that vLLM reads) and ``requests``, each with ``prompt_tokens`` and ``max_new_tokens``, and
``sampling`` where it is not greedy or has stop strings (arguments of vLLM's SamplingParams); ``ends``, the tokens that end a text,
``margins`` (of the two likeliest tokens, at every token) and ``scored``, texts of token ids of which each token's log-probability is
wanted. The second is written at the end: ``version``, ``load_s``, ``start_s``,
``first_s`` and ``end_s`` (seconds of the host's monotonic clock; the first tokens of all requests are there at ``first_s``), ``cpu_s``
(processor seconds of all of vLLM's processes meanwhile),
``answers`` in the order of the requests, ``scores``, and ``stages``, what each stage recorded (recorder.py). Needs vLLM and nothing of
llmpq.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_WARM_TOKENS = 4  # new tokens of each request before anything is measured, as a server that runs has made long ago
_PR_SET_PDEATHSIG = 1


def loaded_mark(answer: Path) -> Path:
    """The empty file beside the answer that is there once the model is."""
    return answer.with_suffix(".loaded")


def read_job() -> dict[str, Any]:
    """The first argument's content, its environment set. The kernel ends this process with whoever started it, and vLLM's own processes
    end with this one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ.update(job["environment"])
    sys.path.append(str(Path(__file__).parent))  # where the processes of the stages find recorder.py
    return job


def load(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """vLLM with the job's model, and ``version`` and ``load_s`` of the answer."""
    import vllm

    started = time.monotonic()
    words = any(request.get("sampling", {}).get("stop") for request in job.get("requests", ()))  # stop strings need a tokenizer
    own = {"worker_extension_cls": "recorder.Recorder", "disable_log_stats": False, "skip_tokenizer_init": not words}
    network = vllm.LLM(job["model"], **own, **job["engine"])
    loaded_mark(Path(sys.argv[2])).touch()
    return network, {"version": vllm.__version__, "load_s": time.monotonic() - started}


def write_answer(found: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = Path(sys.argv[2] + ".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.rename(sys.argv[2])


def main() -> None:
    job = read_job()
    network, found = load(job)
    import vllm

    prompts = [{"prompt_token_ids": request["prompt_tokens"]} for request in job["requests"]]
    wanted = [_wanted(vllm, request, job) for request in job["requests"]]
    network.generate(prompts, [_wanted(vllm, {"max_new_tokens": _WARM_TOKENS}, job) for _ in wanted], use_tqdm=False)
    network.collective_rpc("begin_record")
    found["cpu_s"] = -group_cpu_s()
    found["start_s"], made = generate(network, prompts, wanted)
    found["end_s"] = time.monotonic()
    found["cpu_s"] += group_cpu_s()
    found["first_s"] = max(one.metrics.first_token_ts for one in made)
    found["stages"] = network.collective_rpc("end_record")
    found["answers"] = [_answer(one.outputs[0]) for one in made]
    found["scores"] = [_score(network, vllm, ids) for ids in job["scored"]]
    write_answer(found)


def generate(network: Any, prompts: list[dict[str, Any]], wanted: Any) -> tuple[float, list[Any]]:
    """When it began, and what came of ``prompts``. vLLM begins once its scheduler knows them all, so that its calls do not depend on how
    fast they reach it."""
    network.sleep(level=0)
    network.enqueue(prompts, wanted, use_tqdm=False)
    start = time.monotonic()
    network.wake_up(tags=["scheduling"])
    return start, network.wait_for_completion(use_tqdm=False)


def group_cpu_s() -> float:
    """Processor seconds of the processes that live in this process's group, which are all of vLLM's."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == os.getpgrp():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _wanted(vllm: Any, request: dict[str, Any], job: dict[str, Any]) -> Any:
    sampling = {"temperature": 0.0, **request.get("sampling", {})}
    limits = {"max_tokens": request["max_new_tokens"], "ignore_eos": True, "stop_token_ids": job["ends"]}
    return vllm.SamplingParams(detokenize="stop" in sampling, logprobs=2 if job["margins"] else None, **limits, **sampling)


def _answer(output: Any) -> dict[str, Any]:
    """``tokens``, ``finish_reason``, and ``margins`` where log-probabilities were asked for."""
    ranked = [sorted((one.logprob for one in two.values()), reverse=True) for two in output.logprobs or ()]
    margins = {"margins": [first - second for first, second, *_ in ranked]} if ranked else {}
    return {"tokens": list(output.token_ids), "finish_reason": output.finish_reason, **margins}


def _score(network: Any, vllm: Any, ids: list[int]) -> list[float]:
    """The log-probability of every token of ``ids`` but the first."""
    wanted = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (made,) = network.generate([{"prompt_token_ids": ids}], wanted, use_tqdm=False)
    return [found[token].logprob for token, found in zip(ids[1:], made.prompt_logprobs[1:], strict=True)]


if __name__ == "__main__":
    main()
