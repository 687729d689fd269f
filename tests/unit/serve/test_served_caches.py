"""KV caches at 8 bits from the planner's choice to the perplexity of what was served, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from planned_cases import LAYERS, NEW, REQUESTS, VOCAB, planned_and_served, problem, quantised_model
from serve_cases import requests

from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.quant.bytes import kv_layer_bytes
from llmpq.quant.options import layer_option

PROMPT = 60
LONG = {"prompt_tokens": PROMPT, "end_options": ["16"], "kv_options": ["16", "8"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quantised_model(tmp_path_factory.mktemp("caches"), True)


def mib_for(made: dict[str, Any], caches: float) -> float:
    """Memory for everything at 16 bits but the KV caches, and the share ``caches`` of those."""
    _, body = problem(made, [64.0], 1.0, **LONG)
    device, most = body["devices"][0], body["kv_bytes_per_layer"]["16"]
    ends = sum(device[end]["16"]["resident_bytes"] for end in ("embedding", "head"))
    workspace = max(max(by_size.values()) for by_size in device["workspace_bytes"].values())
    return (LAYERS * (device["options"]["16"]["resident_bytes"] + caches * most) + ends + workspace) / 2**20


def test_caches_that_do_not_fit_are_kept_at_8_bits_and_priced_as_served(made: dict[str, Any], tmp_path: Path) -> None:
    """Room for 85 % of the caches (8 bits take 62.5 %): some layers keep theirs at 8 bits, which does less harm than a layer of 4 bit."""
    plan, served = planned_and_served(made, tmp_path, [mib_for(made, 0.85)], 1.0, **LONG)
    options = plan_options(plan)
    assert 0 < options.count("16/kv8") < LAYERS
    assert set(options) == {"16", "16/kv8"}
    spec = Checkpoint(made["model"]).spec
    held = served["stages"][0]["bytes"]["measured"]["kv"]
    assert held == sum(kv_layer_bytes(spec, REQUESTS, PROMPT + NEW, layer_option(option).kv) for option in options)
    omega = {(row["option"], row["layer"]): row["omega"] for row in made["indicator"]["rows"]}
    assert all(0 < omega["16/kv8", layer] < omega["4", layer] < omega["4/kv8", layer] for layer in range(LAYERS))
    assert plan["omega_sum"] == pytest.approx(sum(omega[option, layer] for layer, option in enumerate(options)))


def test_what_is_served_from_8_bit_caches_is_what_is_evaluated(made: dict[str, Any], tmp_path: Path) -> None:
    caches_alone = 1.01 * sum(row["omega"] for row in made["indicator"]["rows"] if row["option"] == "16/kv8")
    plan, served = planned_and_served(made, tmp_path, [mib_for(made, 0.64)], caches_alone, **LONG)
    options, ends = plan_options(plan), plan_ends(plan)
    assert options == ["16/kv8"] * LAYERS
    windows = {"toy": torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))}
    quality = evaluate_quality(made["model"], made["quantised"], options, windows, ends=ends, progress=lambda _: None)
    plain = evaluate_quality(made["model"], made["quantised"], ["16"] * LAYERS, windows, ends=ends, progress=lambda _: None)
    assert quality["weights_sha256"] == plain["weights_sha256"] == served["weights_sha256"]
    assert quality["texts"][0]["perplexity"] != plain["texts"][0]["perplexity"]
    model = StageModel.load(made["model"], made["quantised"], first_layer=0, options=options, embedding="16", head="16")
    rows = requests([PROMPT] * REQUESTS, NEW, vocab=VOCAB)
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    for request, line in zip(rows, lines, strict=True):
        text = request["prompt_tokens"] + line["tokens"]
        logits = model.logits(torch.tensor([text]))[0]
        assert [int(row.argmax()) for row in logits[PROMPT - 1 : -1]] == line["tokens"]
