"""A plan served by vLLM leaves the same files as llmpq's own runtime, with the tokens that the export's weights make."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import vllm_cases
from planned_cases import NEW, PROMPT, REQUESTS
from serve_cases import byte_tokenizer

from llmpq import artifacts
from llmpq.model.stage import StageModel
from llmpq.schedule.vllm import VllmCall, VllmScheduler, run_calls
from llmpq.vllm_serve.run import serve_with_vllm


class Calls:
    """How many tokens the calls have that vLLM's batching makes."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def start(self, call: VllmCall) -> None:
        self.tokens.append(sum(call.tokens.values()))

    def wait(self, call: VllmCall) -> None:
        """Nothing."""

    def finished(self, call: VllmCall, done: Sequence[int]) -> None:
        """Nothing."""


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
    log = Calls()
    run_calls(VllmScheduler([(PROMPT, NEW), (3, NEW), (PROMPT, NEW)], REQUESTS, PROMPT), 2, log)
    for rank, stage in enumerate(document["stages"]):
        calls = [event for event in events if event["ph"] == "X" and event["pid"] == rank]
        assert [call["args"]["tokens"] for call in sorted(calls, key=lambda call: call["ts"])] == log.tokens  # as the simulation batches
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


@pytest.mark.slow
def test_lines_are_answered_each_in_its_own_form_and_bad_ones_refused(python: Path, tmp_path: Path) -> None:
    made = vllm_cases.planned(tmp_path)
    for directory in (made.model, made.export):
        byte_tokenizer(directory)
    (made.export / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    record = artifacts.read(made.export / "export.json", "export")
    record["files"] |= {path.name: path.stat().st_size for path in made.export.iterdir() if path.name != "export.json"}
    (made.export / "export.json").write_text(json.dumps(record))
    sampled = {"prompt_tokens": [9, 8], "temperature": 1.5, "top_p": 0.9, "max_new_tokens": NEW}
    greedy = {"prompt_tokens": [9, 8, 7], "max_new_tokens": NEW}
    openai = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": [9, 8, 7], "max_tokens": NEW}}
    lines = [
        {"id": "a", **greedy}, {"id": "b", **sampled, "seed": 7}, {"id": "again", **sampled, "seed": 7}, {"id": "long", **greedy,
        "max_new_tokens": 999}, openai, {"id": "stop", **greedy, "stop": ["\n"]}, {"id": "odd", **greedy, "beams": 4},
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"timeout_s": 60.0, "load_timeout_s": 400.0, "compile": False}
    document = serve_with_vllm(*made.asked(requests=tmp_path / "in.jsonl"), tmp_path / "out.jsonl", settings, python)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    own, first, second, long, answered, stopped, odd = found
    assert (document["served_requests"], document["refusals"]) == (5, {"too_long": 1, "unsupported_parameter": 1})
    assert document["sampled_requests"] == 2
    assert first["tokens"] == second["tokens"] != own["tokens"]
    assert (long["error"]["code"], odd["error"]["key"]) == ("too_long", "beams")
    assert answered["response"]["body"]["usage"]["completion_tokens"] == len(own["tokens"]) == NEW
    assert answered["response"]["body"]["choices"][0]["text"] == own["text"]
    assert "\n" not in stopped["text"]
    assert own["tokens"][: len(stopped["tokens"])] == stopped["tokens"]
