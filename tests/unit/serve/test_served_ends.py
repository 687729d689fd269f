"""Embedding and head at 8 bits from the planner's choice to the perplexity of what was served, on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import serve_cases
import torch
from serve_cases import Case, requests

from llmpq import artifacts
from llmpq.cost.problem import build_problem
from llmpq.errors import ArtifactError, LlmpqError
from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options, write_quality
from llmpq.indicator.table import write_indicator
from llmpq.model.checkpoint import Checkpoint
from llmpq.plan.check import check
from llmpq.planning import write_plan
from llmpq.quant.calibrate import calibrate
from llmpq.quant.ends import quantise_ends
from llmpq.quant.quantise import quantise_group

MIB, LAYERS = 2**20, 4
OPTIONS, END_OPTIONS = ["16", "4"], ["16", "8"]
PROMPT, NEW, REQUESTS = 6, 4, 3


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quantised_model(tmp_path_factory.mktemp("tied"), True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quantised_model(tmp_path_factory.mktemp("untied"), False)


def quantised_model(folder: Path, tied: bool) -> dict[str, Any]:
    """A model whose ends are most of it, its quantised layers and ends, and the indicator."""
    changes = {"num_hidden_layers": LAYERS, "vocab_size": 4096, "tie_word_embeddings": tied}
    model = serve_cases.tiny_llama(folder / "model", **changes)
    draw = torch.Generator().manual_seed(0)
    windows = torch.randint(3, 4096, (8, 32), generator=draw).tolist()
    calibrate(model, windows, folder / "c.safetensors", {})
    quantise_group(model, folder / "c.safetensors", folder / "layers", first=0, last=LAYERS - 1, options=OPTIONS, settings={})
    quantise_ends(model, folder / "ends", options=END_OPTIONS)
    given = {"checkpoint_dir": model, "calibration_file": folder / "c.safetensors", "quantised_dirs": [folder / "layers"]}
    labels = {"model": "tiny", "quantizer": "gptq", "indicator": {"name": "i", "method": "residual-error"}, "options": OPTIONS}
    ends = {"ends_dir": folder / "ends", "end_options": END_OPTIONS}
    indicator = write_indicator(folder / "i.json", **given, **labels, **ends)
    return {"model": model, "quantised": [folder / "layers", folder / "ends"], "indicator": indicator}


def cost(device: str) -> dict[str, Any]:
    """Every part takes a constant time, the ends at 8 a longer one."""
    parts = [("layer", option, 1.0) for option in OPTIONS]
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


def problem(made: dict[str, Any], memory_mib: list[float], quality_budget: float | None) -> tuple[dict[str, Any], dict[str, Any]]:
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
        name="ends",
        model={"name": "tiny", "spec": Checkpoint(made["model"]).spec},
        cluster=cluster,
        workload={"requests": REQUESTS, "slots": REQUESTS, "prompt_tokens": PROMPT, "new_tokens": NEW},
        planner={"objective": {"quality_budget": budget}, "micro_batches": {}},
        options=OPTIONS,
        end_options=END_OPTIONS,
        costs={name: cost(name) for name in cluster["types"]},
        links={"cluster": cluster["name"], "rows": links},
        indicator=made["indicator"],
    )


# In MiB a layer takes 0.5 at 16 bit and 0.02 at 4, the embedding 0.5 or 0.26, the head 4 (padded by its kernel) or 0.26.
@pytest.mark.parametrize(
    ("model", "memory_mib", "ends"),
    [("tied", [64.0], ("16", "16")), ("untied", [3.0], ("16", "8")), ("tied", [1.7, 1.7], ("16", "8"))],
    ids=["ample", "tight", "two tight stages"],
)
def test_the_ends_that_fit_are_planned_served_and_evaluated(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, memory_mib: list[float], ends: tuple[str, str]
) -> None:
    made = request.getfixturevalue(model)
    plan, served = planned_and_served(made, tmp_path, memory_mib)
    assert plan_ends(plan) == ends
    assert len(plan["stages"]) == len(memory_mib) or ends == ("16", "16")
    assert (served["stages"][0]["embedding_option"], served["stages"][-1]["head_option"]) == ends
    windows = {"toy": torch.randint(3, 4096, (2, 12), generator=torch.Generator().manual_seed(1))}
    quality = evaluate_quality(made["model"], made["quantised"], plan_options(plan), windows, ends=ends, progress=lambda _: None)
    assert quality["weights_sha256"] == served["weights_sha256"]
    document = write_quality(tmp_path / "quality.json", plan, quality)
    assert (document["embedding_option"], document["head_option"]) == ends


def test_tied_ends_share_a_table_where_two_do_not_fit(tied: dict[str, Any], untied: dict[str, Any], tmp_path: Path) -> None:
    """0.5 MiB hold four layers at 4 bit, their cache and one table of 8 bit, not two."""
    with pytest.raises(LlmpqError, match="no plan fits in memory"):
        planned_and_served(untied, tmp_path, [0.5], 1.2)
    plan, served = planned_and_served(tied, tmp_path, [0.5], 1.2)
    assert plan_ends(plan) == ("8", "8")
    held = served["stages"][0]["bytes"]["measured"]
    assert (held["embedding"], held["head"]) == (4096 * (64 + 2), 64 * 4)  # codes and scales once, and the final norm


def test_ends_that_were_not_quantised_are_named_before_anything_starts(tied: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no file head\.8\.safetensors .* quantise the head at option '8'"):
        planned_and_served({**tied, "quantised": tied["quantised"][:1]}, tmp_path, [3.0])
    assert serve_cases.stage_processes() == []


def planned_and_served(
    made: dict[str, Any], directory: Path, memory_mib: list[float], quality_budget: float | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plan.json, serve.json), having compared what the stages entered in their ledgers with the plan's bytes."""
    cluster, body = problem(made, memory_mib, quality_budget)
    artifacts.write(directory / "problem.json", "problem", body, source="computed")
    plan = write_plan(directory / "problem.json", directory / "plan.json", "llmpq", solver="highs", time_limit=30, gap=0.0)
    assert check(body, plan) == []
    rows = requests([PROMPT] * REQUESTS, NEW, vocab=4096)
    case = Case(directory, made["model"], rows, [LAYERS], (REQUESTS, REQUESTS), quantised=made["quantised"])
    case.cluster, case.body = cluster, {key: value for key, value in plan.items() if key not in ("schema", "version", "provenance")}
    served = case.serve()
    for stage in served["stages"]:
        for kind in ("weights", "embedding", "head", "kv"):
            assert stage["bytes"]["measured"][kind] == stage["bytes"]["predicted"][kind], kind
    return plan, served
