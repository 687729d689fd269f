"""A tiny model from its quantised layers and ends over a problem and its plan to a run, for tests of what a planner may choose."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import serve_cases
import torch
from serve_cases import Case, requests

from llmpq import artifacts
from llmpq.cost.problem import build_problem
from llmpq.indicator.table import write_indicator
from llmpq.model.checkpoint import Checkpoint
from llmpq.plan.check import check
from llmpq.planning import write_plan
from llmpq.quant.calibrate import calibrate
from llmpq.quant.ends import quantise_ends
from llmpq.quant.options import layer_options
from llmpq.quant.quantise import quantise_group

LAYERS, VOCAB = 4, 4096
OPTIONS, END_OPTIONS, KV_OPTIONS = ["16", "4"], ["16", "8"], ["16", "8"]
PROMPT, NEW, REQUESTS = 6, 4, 3


def quantised_model(folder: Path, tied: bool, options: Sequence[str] = tuple(OPTIONS), **changes: Any) -> dict[str, Any]:
    """A model whose ends are most of it, its quantised layers and ends, and the indicator; ``changes`` to its configuration."""
    settings = {"num_hidden_layers": LAYERS, "vocab_size": VOCAB, "tie_word_embeddings": tied, **changes}
    model = serve_cases.tiny_llama(folder / "model", **settings)
    draw = torch.Generator().manual_seed(0)
    windows = torch.randint(3, VOCAB, (8, 32), generator=draw).tolist()
    calibrate(model, windows, folder / "c.safetensors", {})
    quantise_group(model, folder / "c.safetensors", folder / "layers", first=0, last=LAYERS - 1, options=list(options), settings={})
    quantise_ends(model, folder / "ends", options=END_OPTIONS)
    given = {"checkpoint_dir": model, "calibration_file": folder / "c.safetensors", "quantised_dirs": [folder / "layers"]}
    labels = {
        "model": "tiny",
        "quantizer": "gptq",
        "indicator": {"name": "i", "method": "residual-error"},
        "options": layer_options(options, KV_OPTIONS),
    }
    ends = {"ends_dir": folder / "ends", "end_options": END_OPTIONS}
    indicator = write_indicator(folder / "i.json", **given, **labels, **ends)
    return {"model": model, "quantised": [folder / "layers", folder / "ends"], "indicator": indicator}


def cost(device: str, options: Sequence[str] = tuple(OPTIONS)) -> dict[str, Any]:
    """Every part takes a constant time, the ends at 8 a longer one."""
    parts = [("layer", option, 1.0) for option in layer_options(options, KV_OPTIONS)]
    parts += [("embedding", "16", 0.1), ("embedding", "8", 0.2), ("head", "16", 1.0), ("head", "8", 2.0)]
    fits = [
        {"part": part, "phase": phase, "option": option, "form": "terms", "terms": {"1": ms}, "heldout_mape": 0.0, "points": 3}
        for part, option, ms in parts
        for phase in ("prefill", "decode")
    ]
    workspace = [
        {"part": "layer", "phase": phase, "micro_batch": 1, "tokens": 1, "context": 1, "bytes": 200} for phase in ("prefill", "decode")
    ]
    return {"model": "tiny", "device": device, "slowdown": 1.0, "fits": fits, "workspace": workspace}


def problem(
    made: dict[str, Any],
    memory_mib: Sequence[float],
    quality_budget: float | None = None,
    *,
    prompt_tokens: int = PROMPT,
    end_options: Sequence[str] = tuple(END_OPTIONS),
    kv_options: Sequence[str] = ("16",),
    options: Sequence[str] = tuple(OPTIONS),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(cluster, body of problem.json) for devices of so much memory; without a budget: both ends may be at 8, no layer at 4."""
    budget = 1.01 * sum(row["omega"] for row in made["indicator"]["ends"]) if quality_budget is None else quality_budget
    cluster = serve_cases.cluster(len(memory_mib))
    cluster["types"] = {f"kind{n}": {**cluster["types"]["cpu"], "memory_mib": size} for n, size in enumerate(memory_mib)}
    cluster["members"] = [{**member, "device": f"kind{number}"} for number, member in enumerate(cluster["members"])]
    names = [member["name"] for member in cluster["members"]]
    links = [
        {"from": a, "to": b, "bytes": size, "p10_ms": ms, "p50_ms": ms, "p90_ms": ms, "repeats": 3}
        for a in names
        for b in names
        for size, ms in ((1, 0.1), (1_000_000, 1.1))
        if a != b
    ]
    return cluster, build_problem(
        name="tiny",
        model={"name": "tiny", "spec": Checkpoint(made["model"]).spec},
        cluster=cluster,
        workload={"requests": REQUESTS, "slots": REQUESTS, "prompt_tokens": prompt_tokens, "new_tokens": NEW},
        planner={"objective": {"quality_budget": budget}, "micro_batches": {}},
        options=options,
        end_options=end_options,
        kv_options=kv_options,
        costs={name: cost(name, options) for name in cluster["types"]},
        links={"cluster": cluster["name"], "rows": links},
        indicator=made["indicator"],
    )


def planned_and_served(
    made: dict[str, Any], directory: Path, memory_mib: Sequence[float], quality_budget: float | None = None, **choices: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plan.json, serve.json), having compared what the stages entered in their ledgers with the plan's bytes."""
    cluster, body = problem(made, memory_mib, quality_budget, **choices)
    artifacts.write(directory / "problem.json", "problem", body, source="computed")
    plan = write_plan(directory / "problem.json", directory / "plan.json", "llmpq", solver="highs", time_limit=30, gap=0.0)
    assert check(body, plan) == []
    rows = requests([body["workload"]["prompt_tokens"]] * REQUESTS, NEW, vocab=VOCAB)
    case = Case(directory, made["model"], rows, [LAYERS], (REQUESTS, REQUESTS), quantised=made["quantised"])
    case.cluster, case.body = cluster, {key: value for key, value in plan.items() if key not in ("schema", "version", "provenance")}
    served = case.serve()
    for stage in served["stages"]:
        for kind in ("weights", "embedding", "head", "kv"):
            assert stage["bytes"]["measured"][kind] == stage["bytes"]["predicted"][kind], kind
    return plan, served
