"""Our runtime as a competitor: a plan made by hand, served by ``llmpq.serve``, measured by what it says of itself."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.bench_serve.memory import StagePeaks
from llmpq.model.spec import ModelSpec
from llmpq.quant.bytes import kv_layer_bytes
from llmpq.quant.options import layer_option, weight_option
from llmpq.schedule.batches import balanced
from llmpq.serve.batch import serve

PREFILL_TOKENS = 512
"""Prompt tokens of one prefill call: enough for the kernels to reach their rate, few enough for activations to stay in the cache."""

ROOM = 1 << 40  # a budget that never binds
_LOADED = " loaded in "  # how serve says that a stage's weights are there


@dataclass(frozen=True)
class Ours:
    """One way to serve: the option of every layer, and those of embedding and head."""

    name: str
    option: str
    embedding: str = "16"
    head: str = "16"

    def options(self, spec: ModelSpec) -> list[str]:
        return [self.option] * spec.layers

    def folders(self, quantised: Sequence[Path]) -> list[str] | None:
        """Those of ``quantised`` where its weights lie; None where they come straight from the checkpoint."""
        needed = any(weight_option(option).quantised for option in (self.option, self.embedding, self.head))
        return [str(path) for path in quantised] if needed else None


@dataclass(frozen=True)
class Result:
    """One measured run, loading and warm-up left out of everything but ``load_s``; ``peak_bytes`` by stage."""

    seconds: float
    prefill_s: float
    decode_s: float
    cpu_s: float
    load_s: float
    peak_bytes: list[int]
    tokens: list[list[int]]


def plan_body(spec: ModelSpec, system: Ours, stages: int, slots: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """A plan of ``stages`` nearly equal stages on devices d0, d1 …; what is predicted there is no prediction."""
    layers, bodies, rows = balanced(spec.layers, stages), [], -(-slots // stages)
    kv = kv_layer_bytes(spec, slots, prompt_tokens + new_tokens, layer_option(system.option).kv)
    for number, count in enumerate(layers):
        first, last = number == 0, number == stages - 1
        sizes = {"weights": 1, "kv": kv * count, "embedding": 1, "head": 1, "workspace": 1}
        bodies.append(
            {
                "device": f"d{number}",
                "first_layer": sum(layers[:number]),
                "options": [system.option] * count,
                "has_embedding": first,
                "has_head": last,
                "embedding_option": system.embedding if first else None,
                "head_option": system.head if last else None,
                "bytes": {**sizes, "total": sum(sizes.values()), "budget": ROOM},
                "stored_bytes": 1,
                "prefill_ms": 1.0,
                "decode_ms": 1.0,
            }
        )
    prefill = max(1, min(rows, PREFILL_TOKENS // prompt_tokens))
    counts = {"prefill_count": -(-slots // prefill), "decode_count": -(-slots // rows)}
    certificate = {
        "objective": 1.0,
        "bound": None,
        "gap": None,
        "solver": "none",
        "solver_version": "0",
        "status": "heuristic",
        "seconds": 0.0,
        "candidates": {"enumerated": 1, "pruned": 0, "solved": 1},
        "seed": 0,
    }
    return {
        "strategy": "bench-serve",
        "problem_sha256": "0" * 64,
        "source": "measured",
        "schedule": "barrier",
        "stages": bodies,
        "micro_batch": {"prefill": prefill, "decode": rows, **counts},
        "predicted": dict.fromkeys(("prefill_s", "decode_s", "total_s", "tokens_per_s", "simulated_total_s"), 1.0),
        "omega_sum": 0.0,
        "objective_ms": 1.0,
        "quality_budget_met": None,
        "certificate": certificate,
        "binding": [],
    }


def cluster(stages: int, threads: int) -> dict[str, Any]:
    """A device of ``threads`` cores for each stage, next to each other; where there are fewer cores, stages share them in turn."""
    cores = sorted(os.sched_getaffinity(0))
    kind = {"name": "cpu", "kind": "cpu", "source": "measured", "cores": threads, "slowdown": 1.0, "memory_mib": ROOM >> 20}
    own = [sorted({cores[(stage * threads + index) % len(cores)] for index in range(threads)}) for stage in range(stages)]
    members = [{"name": f"d{stage}", "device": "cpu", "cores": numbers} for stage, numbers in enumerate(own)]
    return {"name": "bench-serve", "launch": "local", "types": {"cpu": kind}, "members": members}


def run_ours(
    checkpoint: Path,
    quantised: Sequence[Path],
    system: Ours,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    stages: int = 1,
    threads: int = 1,
    slots: int | None = None,
) -> Result:
    """Serve ``prompts`` (equally long) once, ``new_tokens`` each, with ``threads`` in each of ``stages``. Raises LlmpqError."""
    rows = min(slots or len(prompts), len(prompts))
    requests = [{"id": f"{number:05}", "prompt_tokens": list(ids), "max_new_tokens": new_tokens} for number, ids in enumerate(prompts)]
    spec = ModelSpec.from_directory(checkpoint)
    with tempfile.TemporaryDirectory(prefix="llmpq-bench-serve-") as folder, StagePeaks() as peaks:
        home = Path(folder)
        workload = {"name": "bench-serve", "ignore_eos": True, "requests": requests}
        artifacts.write(home / "workload.json", "workload", workload, source="computed")
        body = plan_body(spec, system, stages, rows, len(prompts[0]), new_tokens)
        artifacts.write(home / "plan.json", "plan", body, source="computed")

        def heard(text: str) -> None:
            if _LOADED in text:
                peaks.loaded()

        settings = {"slots": rows, "ignore_eos": True, "timeout_s": 600.0}
        given = (
            home / "plan.json",
            None,
            home / "workload.json",
            cluster(stages, threads),
            checkpoint,
            system.folders(quantised),
            home / "out",
            settings,
        )
        document = serve(*given, say=heard)
        measured = document["throughput"]["measured"]
        lines = (home / "out" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        return Result(
            seconds=measured["total_s"],
            prefill_s=measured["prefill_s"],
            decode_s=measured["decode_s"],
            cpu_s=sum(stage["process_cpu_s"] for stage in document["stages"]),
            load_s=document["load_s"],
            peak_bytes=[peaks.bytes.get(stage, 0) for stage in range(stages)],
            tokens=[json.loads(line)["tokens"] for line in lines],
        )
