"""One plan served by both backends in turn: the same requests, weights and cores, a fresh start of the processes each time."""

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.bench.record import load, machine, now, revision
from llmpq.bench_backends.record import BACKENDS, Line, append
from llmpq.config_groups import read_groups
from llmpq.errors import ConfigError
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings
from llmpq.vllm_serve.run import serve_with_vllm


@dataclass(frozen=True)
class Served:
    """An experiment with ``backend=vllm`` that has run, and one of its strategies."""

    experiment: Path
    strategy: str

    @property
    def folder(self) -> Path:
        return self.experiment / self.strategy

    def check(self) -> None:
        """ConfigError where something is missing of what both backends need."""
        needed = [self.folder / "plan.json", self.folder / "vllm", *(self.experiment / name for name in ("config.yaml", "problem.json"))]
        missing = [path for path in [*needed, self.experiment / "workload.json"] if not path.exists()]
        if missing:
            name = self.experiment.name
            raise ConfigError(f"{missing[0]} is not there; run the experiment first: snakemake --cores 2 --config experiments={name}")

    def serve(self, backend: str, root: Path, out: Path) -> dict[str, Any]:
        """serve.json of one run into ``out``; ``root`` is the folder that holds resources/ and results/."""
        config = read_groups(self.experiment / "config.yaml", ("model", "quantizer", "cluster", "serve", "workload", "backend"))
        settings = run_settings(config, self.experiment.name)
        model, quantizer = config["model"]["name"], config["quantizer"]["name"]
        checkpoint, quantised = root / "resources/models" / model / "checkpoint", root / "results/quantised" / model
        given = (
            self.folder / "plan.json",
            self.experiment / "problem.json",
            self.experiment / "workload.json",
            config["cluster"],
            checkpoint,
        )
        if backend == "vllm":
            return serve_with_vllm(*given, self.folder / "vllm", out, settings, say=_silent)
        return serve(*given, [quantised / quantizer, quantised / "ends"], out, settings, say=_silent)


def run_rounds(served: Served, rounds: int, results: Path, root: Path, say: Callable[[str], None]) -> None:
    """``rounds`` of both backends, each round in the other order than the one before; every run is stored as soon as it is over."""
    served.check()
    for number in range(1, rounds + 1):
        for backend in BACKENDS if number % 2 else BACKENDS[::-1]:
            before = load()
            with tempfile.TemporaryDirectory(prefix="llmpq-bench-") as folder:
                document = served.serve(backend, root, Path(folder) / "out")
            line = line_of(served, backend, document, number, before)
            append(results, line)
            say(f"round {number}, {backend}: {line.tokens_per_s:.1f} tokens/s, {line.cpu_s:.1f} processor seconds, load {before:g}")


def line_of(served: Served, backend: str, document: Mapping[str, Any], number: int, before: float) -> Line:
    """The line of one run."""
    workload, plan = artifacts.read(served.experiment / "workload.json", "workload"), artifacts.read(served.folder / "plan.json", "plan")
    measured, predicted = (document["throughput"][key] for key in ("measured", "predicted"))
    stages = sum(stage["process_cpu_s"] for stage in document["stages"])
    return Line(
        date=now(),
        revision=revision("vllm_serve", "serve", "model", "native", "bench_backends"),
        machine=machine(),
        load=before,
        round=number,
        backend=backend,
        engine=document.get("engine", "llmpq"),
        experiment=served.experiment.name,
        plan=_words(plan),
        plan_sha256=document["plan_sha256"],
        requests=document["requests"],
        prompt_tokens=max(len(request["prompt_tokens"]) for request in workload["requests"]),
        new_tokens=document["new_tokens"],
        **{key: measured[key] for key in ("tokens_per_s", "prefill_s", "decode_s", "total_s")},
        cpu_s=document.get("cpu_s", stages),
        load_s=document["load_s"],
        predicted_s=predicted["total_s"],
    )


def _words(plan: Mapping[str, Any]) -> str:
    """``large0: 4 × 16, 9 × w8a8; middle0: …``."""
    stages = []
    for stage in plan["stages"]:
        runs = [(option, len(list(alike))) for option, alike in itertools.groupby(sorted(stage["options"]))]
        stages.append(f"{stage['device']}: {', '.join(f'{count} × {option}' for option, count in runs)}")
    return "; ".join(stages)


def _silent(_: str) -> None:
    pass
