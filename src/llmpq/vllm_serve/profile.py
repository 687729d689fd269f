"""Times of a model's layers and ends on a device of this machine, through vLLM: its kernels, its calls, its scheduler.

vLLM runs models of few layers: some at 16 bits alone, and for every option the same with more layers at that option. What these add is the
time of a layer; head and sampling are timed within a call, the lookup of the embedding by itself, and the rest of a call is its overhead.
``scheduler`` is the time from the end of a call until the next one of the same requests begins: the tokens' way to vLLM's scheduler, what
it does, and the way back. All of it is compiled and warm. Where a call has one thread, processor time counts in place of time spent waiting
for a core.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmpq import artifacts
from llmpq.errors import ConfigError, ServeError
from llmpq.model.spec import ModelSpec
from llmpq.profile.layers import LEAST_PART, check_settings
from llmpq.profile.machine import QuietCheck, identity, quietest_cores
from llmpq.profile.statistics import summary_ms
from llmpq.quant.vllm_bytes import cache_bytes
from llmpq.vllm_serve import profile_engine
from llmpq.vllm_serve.cut import export_cut
from llmpq.vllm_serve.process import run_engine
from llmpq.vllm_serve.settings import BACKEND, compiling, environment_of

SHALLOW, DEEP = 2, 8  # layers
BUDGET_S = 45.0  # of measuring, for each model that is loaded
LOAD_TIMEOUT_S, CALL_TIMEOUT_S = 600.0, 120.0
LEAST_S = 1e-5  # of an overhead, which in a long call is less than what layers differ by
NEAR = 3  # tokens by which the context of a decode call may differ from the one that it counts for
ONE_RUN = 256  # contexts no further apart than this are passed in one run of decode calls
NO_OPTION = "-"
_BASE = "16"

Key = tuple[str, int, int]
"""Phase, rows, and prompt tokens or context."""


@dataclass
class Times:
    """Of one model, by shape: seconds of a call without head and sampling (``body``), in these (``head``), and until the next (``gap``)."""

    body: dict[Key, list[float]]
    head: dict[Key, list[float]]
    gap: dict[Key, list[float]]
    peak_bytes: dict[Key, int]

    def median(self, key: Key) -> float:
        return float(np.median(self.body[key]))


def profile_with_vllm(
    checkpoint_dir: str | Path,
    model_name: str,
    device: Mapping[str, Any],
    settings: Mapping[str, Any],
    out: str | Path,
    *,
    options: Sequence[str],
    python: Path,
    compiled: bool = True,
    cores: Sequence[int] | None = None,
    log: Path,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Profile ``device`` (the configuration group) through vLLM and write a ``profile`` artifact to ``out``; returns the document.

    ``settings`` are the ``profile`` group, as ``llmpq.profile.layers`` has them; ``options`` what vLLM has kernels for here; ``compiled``
    as in serving. ``cores`` are the core numbers to run on (default: the least busy ones). Raises ConfigError for a device that vLLM cannot
    be given and a model of a single layer, ServeError where vLLM does not load or a shape did not come about.
    """
    check_settings(device, settings)
    if float(device.get("slowdown", 1.0)) != 1.0:
        raise ConfigError(f"device {device['name']}: slowdown is {device['slowdown']}, but vLLM cannot be slowed down; choose 1")
    spec, started, quiet = ModelSpec.from_directory(checkpoint_dir), time.perf_counter(), QuietCheck()
    if spec.layers <= SHALLOW:
        raise ConfigError(f"{checkpoint_dir}: has {spec.layers} layers; a profile through vLLM compares {SHALLOW} with more")
    deep, chosen = min(DEEP, spec.layers), tuple(cores) if cores else quietest_cores(int(device.get("cores", 1)))
    timed = dict.fromkeys((_BASE, *options))  # 16 in any case: the shallow model's own layers are of it
    models = {NO_OPTION: [_BASE] * SHALLOW} | {option: [_BASE] * SHALLOW + [option] * (deep - SHALLOW) for option in timed}
    asked = _asked(spec, settings, compiled)
    times, lookups, version, spent_s = {}, {}, "", 0.0
    for number, (option, layers) in enumerate(models.items(), start=1):
        progress(f"profile {device['name']} through vLLM: model {number} of {len(models)}, layers at {', '.join(dict.fromkeys(layers))}")
        with tempfile.TemporaryDirectory(prefix="llmpq-profile-") as folder:
            exported = export_cut(checkpoint_dir, layers, Path(folder))
            engine = {**asked["engine"], **_cache(spec, asked, len(layers))}
            environment = environment_of([len(layers)], [chosen])
            # named by itself, without its folder, so that what was compiled for one device serves the next
            job = {**asked, "model": exported.name, "engine": engine, "environment": environment}
            limits = {"load_timeout_s": LOAD_TIMEOUT_S, "timeout_s": CALL_TIMEOUT_S}
            found = run_engine(python, job, log.absolute(), program=profile_engine, place=exported.parent, **limits)
        times[option], version = times_of(asked["shapes"], found["shapes"], settings, len(chosen)), found["version"]
        lookups, spent_s = dict(zip(asked["lookups"], found["lookups"], strict=True)), spent_s + found["cpu_s"]
    body = {
        "model": model_name,
        "device": device["name"],
        "kind": device["kind"],
        "backend": BACKEND,
        "engine": {"name": f"vllm {version}", "dtype": asked["engine"]["dtype"], "compile": compiled},
        "slowdown": 1.0,
        "threads": len(chosen),
        **({"profile": settings["name"]} if "name" in settings else {}),
        "seconds": round(time.perf_counter() - started, 3),
        "quiet": quiet.finish(spent_s),
        "device_identity": {**identity(chosen), "torch_threads": len(chosen)},
        "rows": rows_of(times, lookups, deep - SHALLOW),
    }
    config = {"device": dict(device), "profile": dict(settings), "options": list(options), "compile": compiled}
    inputs = [Path(checkpoint_dir) / "config.json"]
    return artifacts.write(out, "profile", body, source=str(device["source"]), inputs=inputs, config=config)


def _asked(spec: ModelSpec, settings: Mapping[str, Any], compiled: bool) -> dict[str, Any]:
    """What profile_engine.py is asked of every model."""
    sizes, prompts = (sorted({int(size) for size in settings[key]}) for key in ("micro_batches", "prompt_tokens"))
    shapes = [{"rows": size, "prompt_tokens": prompt, "new_tokens": 1} for size in sizes for prompt in prompts]
    runs = decode_runs(sorted({int(context) for context in settings["contexts"]}))
    shapes += [{"rows": size, "prompt_tokens": prompt, "new_tokens": new} for size in sizes for prompt, new in runs]
    longest = max(shape["prompt_tokens"] + shape["new_tokens"] for shape in shapes)
    spec.check_context(longest)
    engine = {
        "dtype": "float32",
        "pipeline_parallel_size": 1,
        "max_model_len": longest,
        "max_num_seqs": sizes[-1],
        "max_num_batched_tokens": max(sizes[-1] * prompts[-1], longest),
        "enable_prefix_caching": False,
        "distributed_executor_backend": "mp",
    }
    return {
        "engine": {**engine, **compiling(compiled)},
        "shapes": shapes,
        "lookups": sorted({size * length for size in sizes for length in (1, *prompts)}),
        "vocab": spec.vocab,
        "rounds": max(2, int(settings["repeats"])),
        "budget_s": BUDGET_S,
    }


def decode_runs(contexts: Sequence[int]) -> list[tuple[int, int]]:
    """(prompt tokens, new tokens) of the runs whose decode calls pass ``contexts`` (ascending)."""
    runs: list[list[int]] = []
    for context in contexts:
        if runs and context - runs[-1][-1] <= ONE_RUN:
            runs[-1].append(context)
        else:
            runs.append([context])
    found = []
    for run in runs:
        prompt = max(1, run[0] - NEAR - 1)
        found.append((prompt, run[-1] + NEAR - prompt + 1))
    return found


def _cache(spec: ModelSpec, asked: Mapping[str, Any], layers: int) -> dict[str, int]:
    engine = asked["engine"]
    return {"kv_cache_memory_bytes": layers * cache_bytes(spec, engine["max_num_seqs"], engine["max_model_len"], engine["dtype"])}


def times_of(shapes: Sequence[Mapping[str, int]], found: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], threads: int) -> Times:
    """Sort the calls of one model by what they were; ServeError where a shape of the grid did not come about."""
    times = Times({}, {}, {}, {})
    contexts = sorted({int(context) for context in settings["contexts"]})
    for shape, measured in zip(shapes, found, strict=True):
        rows, prompt = shape["rows"], shape["prompt_tokens"]
        phase = "prefill" if shape["new_tokens"] == 1 else "decode"
        whole = [call for run in measured["calls"] for call in run if call["prefill"] and call["tokens"] == rows * prompt]
        passed = [context for context in contexts if prompt < context < prompt + shape["new_tokens"]]
        for length in [prompt] if phase == "prefill" else passed:
            key = (phase, rows, length)
            near = [
                [(call, later) for call, later in zip(run, [*run[1:], None], strict=True) if not call["prefill"]
                 and abs(call["context"] - length) <= NEAR] for run in measured["calls"]
            ]  # fmt: skip
            pairs = [(call, None) for call in whole] if phase == "prefill" else [pair for run in near for pair in run]
            if not pairs:
                raise ServeError(f"vLLM made no {phase} call of {rows} requests at {length} tokens; profile again on a quiet machine")
            times.body[key] = [_seconds(call, threads) for call, _ in pairs]
            times.head[key] = [_head_seconds(call, threads) for call, _ in pairs]
            times.gap[key] = [later["start_s"] - call["end_s"] for call, later in pairs if later is not None and not later["prefill"]]
            times.peak_bytes[key] = measured["peak_bytes"]
    return times


def _seconds(call: Mapping[str, Any], threads: int) -> float:
    """Of a call, without waiting, head and sampling."""
    spent, busy = call["end_s"] - call["start_s"] - call["wait_s"], call["cpu_s"]
    head, head_busy = call["head_s"], call["head_cpu_s"]
    return float(min(spent - head, busy - head_busy) if threads == 1 else spent - head)


def _head_seconds(call: Mapping[str, Any], threads: int) -> float:
    return float(min(call["head_s"], call["head_cpu_s"]) if threads == 1 else call["head_s"])


def rows_of(times: Mapping[str, Times], lookups: Mapping[int, Sequence[float]], added: int) -> list[dict[str, Any]]:
    """Profile rows: ``times`` are of the shallow model (NO_OPTION) and of those with ``added`` layers at an option; ``lookups`` seconds of
    the embedding by the number of tokens."""
    shallow, deep, rows = times[NO_OPTION], {option: found for option, found in times.items() if option != NO_OPTION}, []
    for key in shallow.body:
        phase, size, length = key
        base = shallow.median(key)
        peak = max(found.peak_bytes[key] for found in times.values())
        for option, found in deep.items():
            seconds = [max(call - base, LEAST_PART * call) / added for call in found.body[key]]
            rows.append(_row("layer", option, key, seconds, peak))
        lookup = lookups[size * (length if phase == "prefill" else 1)]
        rows.append(_row("embedding", _BASE, key, lookup, peak))
        rows.append(_row("head", _BASE, key, [call for found in times.values() for call in found.head[key]], peak))
        layers = SHALLOW * max((deep[_BASE].median(key) - base) / added, 0.0)
        seconds = [max(call - layers - float(np.median(lookup)), LEAST_S) for call in shallow.body[key]]
        rows.append(_row("overhead", NO_OPTION, key, seconds, peak))
        gaps = [gap for found in times.values() for gap in found.gap[key]]
        if gaps:
            rows.append(_row("scheduler", NO_OPTION, key, gaps, peak))
    return sorted(rows, key=lambda row: ("layer", "embedding", "head", "overhead", "scheduler").index(row["part"]))


def _row(part: str, option: str, key: Key, seconds: Sequence[float], workspace: int) -> dict[str, Any]:
    phase, size, length = key
    return {
        "part": part,
        "phase": phase,
        "option": option,
        "micro_batch": size,
        "tokens": length if phase == "prefill" else 1,
        "context": length,
        **summary_ms(seconds),
        "workspace_bytes": workspace,
    }
