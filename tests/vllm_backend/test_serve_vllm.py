"""A plan served by vLLM leaves the same files as llmpq's own runtime, with the tokens that the export's weights make."""

import json
from pathlib import Path

import pytest
import torch
import vllm_cases
from planned_cases import NEW, REQUESTS

from llmpq import artifacts
from llmpq.model.stage import StageModel
from llmpq.vllm_serve.run import serve_with_vllm


@pytest.mark.slow
@torch.inference_mode()
def test_a_plan_is_served_and_every_stage_has_its_calls(python: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made, out = vllm_cases.planned(tmp_path), tmp_path / "out"
    settings = {"timeout_s": 60.0, "load_timeout_s": 400.0, "compile": False, "margins": True, "ignore_eos": True}
    before = set(Path("/dev/shm").iterdir())
    document = serve_with_vllm(*made.asked(), out, settings, python)
    assert set(Path("/dev/shm").iterdir()) <= before
    assert document == artifacts.read(out / "serve.json", "serve")
    assert (document["backend"], document["schedule"], document["new_tokens"]) == ("vllm", "continuous", REQUESTS * NEW)
    measured = document["throughput"]["measured"]
    assert measured["total_s"] == pytest.approx(measured["prefill_s"] + measured["decode_s"])
    assert min(measured.values()) > 0
    events = json.loads((out / "timeline.json").read_text())["traceEvents"]
    for rank, stage in enumerate(document["stages"]):
        calls = [event for event in events if event["ph"] == "X" and event["pid"] == rank]
        assert sum(event["dur"] for event in calls) / 1e6 == pytest.approx(stage["busy_s"], rel=1e-3)
        assert 0 < stage["utilisation"] <= 1
        assert stage["decode"]["calls"] > 0
        assert stage["bytes"]["measured"]["rss_growth"] > 0
    assert (
        document["weights_sha256"]
        == StageModel.load(
            made.model, made.quantised, first_layer=0, options=list(vllm_cases.OPTIONS), embedding="16", head="16"
        ).weights_digest
    )
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    asked = artifacts.read(made.requests, "workload")["requests"]
    assert [row["id"] for row in rows] == [request["id"] for request in asked]
    model = AutoModelForCausalLM.from_pretrained(made.export, dtype=torch.float32).eval()
    for row, request in zip(rows, asked, strict=True):
        assert len(row["tokens"]) == len(row["margins"]) == NEW
        assert row["min_margin"] == min(row["margins"]) == row["margins"][row["min_margin_token"]]
        ids = torch.tensor([[*request["prompt_tokens"], *row["tokens"]]])
        logits = model(ids).logits[0, len(request["prompt_tokens"]) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(row["tokens"])[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 0.25  # transformers rounds activations a little differently: near-ties may fall otherwise
