"""From the calls that vLLM made to the rows of a profile, and the models of few layers that they are made with."""

import json
from pathlib import Path
from typing import Any

import pytest
import serve_cases
import torch

from llmpq.cost.latency import fit_profile, write_cost
from llmpq.errors import ArtifactError, ConfigError, ServeError
from llmpq.vllm_serve.cut import export_cut
from llmpq.vllm_serve.profile import DEEP, NO_OPTION, SHALLOW, decode_runs, profile_with_vllm, rows_of, times_of

SETTINGS = {"micro_batches": [1, 2], "prompt_tokens": [8, 16], "contexts": [8, 16], "repeats": 2, "warmup": 1}
LAYER = {"16": 2.0, "w8a8": 1.0}  # milliseconds a row
HEAD, OVERHEAD, PAUSE, LOOKUP = 0.5, 0.25, 0.125, 0.0625


def call(prefill: bool, rows: int, tokens: int, context: int, start: float, layers: list[str]) -> dict[str, Any]:
    body = sum(LAYER[option] for option in layers) * rows + OVERHEAD + LOOKUP
    spent = (body + HEAD) / 1e3
    times = {"start_s": start, "end_s": start + spent, "wait_s": 0.0, "cpu_s": spent, "head_s": HEAD / 1e3, "head_cpu_s": HEAD / 1e3}
    return {"prefill": prefill, "rows": rows, "tokens": tokens, "context": context, **times}


def shapes() -> list[dict[str, int]]:
    found = [{"rows": rows, "prompt_tokens": prompt, "new_tokens": 1} for rows in (1, 2) for prompt in (8, 16)]
    runs = decode_runs([8, 16])
    return found + [{"rows": rows, "prompt_tokens": prompt, "new_tokens": new} for rows in (1, 2) for prompt, new in runs]


def measured(layers: list[str]) -> list[dict[str, Any]]:
    """Two runs of every shape by a model that takes exactly LAYER, HEAD, OVERHEAD and LOOKUP, and pauses between calls."""
    found = []
    for shape in shapes():
        rows, prompt = shape["rows"], shape["prompt_tokens"]
        run, now = [call(True, rows, rows * prompt, prompt, 0.0, layers)], 0.0
        for step in range(1, shape["new_tokens"]):
            now = run[-1]["end_s"] + PAUSE / 1e3
            run.append(call(False, rows, rows, prompt + step, now, layers))
        found.append({"calls": [run, run], "peak_bytes": 1000 * rows})
    return found


def rows() -> list[dict[str, Any]]:
    models = {NO_OPTION: ["16"] * SHALLOW} | {option: ["16"] * SHALLOW + [option] * (DEEP - SHALLOW) for option in LAYER}
    times = {option: times_of(shapes(), measured(layers), SETTINGS, 1) for option, layers in models.items()}
    return rows_of(times, {size: [LOOKUP / 1e3] for size in (1, 2, 8, 16, 32)}, DEEP - SHALLOW)


def test_what_a_model_takes_is_told_apart_into_its_parts() -> None:
    for row in rows():
        size = row["micro_batch"]
        expected = {"head": HEAD, "embedding": LOOKUP, "overhead": OVERHEAD, "scheduler": PAUSE}
        expected["layer"] = LAYER.get(row["option"], 0.0) * size
        assert row["p50_ms"] == pytest.approx(expected[row["part"]], abs=1e-5)
        assert row["workspace_bytes"] == 1000 * size
    parts = {(row["part"], row["option"]) for row in rows()}
    assert parts == {("layer", "16"), ("layer", "w8a8"), ("embedding", "16"), ("head", "16"), ("overhead", "-"), ("scheduler", "-")}


def test_a_run_of_decode_calls_passes_every_context_and_far_ones_have_their_own() -> None:
    assert decode_runs([64, 128, 160]) == [(60, 104)]
    assert decode_runs([64, 512]) == [(60, 8), (508, 8)]
    assert decode_runs([1]) == [(1, 4)]


def test_a_shape_that_did_not_come_about_is_an_error() -> None:
    found = measured(["16"] * SHALLOW)
    found[0]["calls"] = [[call(True, 1, 4, 4, 0.0, ["16"])]]
    with pytest.raises(ServeError, match="vLLM made no prefill call of 1 requests at 8 tokens; profile again"):
        times_of(shapes(), found, SETTINGS, 1)


def test_a_fit_says_through_which_backend_and_another_one_is_refused(tmp_path: Path) -> None:
    body = {"model": "m", "device": "d", "kind": "cpu", "backend": "vllm", "slowdown": 1.0, "threads": 1, "rows": rows()}
    assert fit_profile(body)["backend"] == "vllm"
    header = {"schema": "llmpq.profile", "version": 1, "provenance": {"source": "measured"}}
    (tmp_path / "profile.json").write_text(json.dumps({**header, **body}))
    assert write_cost(tmp_path / "profile.json", tmp_path / "cost.json", backend="vllm")["backend"] == "vllm"
    with pytest.raises(ArtifactError, match="key 'backend' is 'vllm', expected 'native'"):
        write_cost(tmp_path / "profile.json", tmp_path / "cost.json", backend="native")


def test_a_cut_model_has_the_first_layers_of_the_whole_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = serve_cases.tiny_llama(tmp_path / "model", num_hidden_layers=4, hidden_size=128)
    (tmp_path / "cut").mkdir()
    out = export_cut(whole, ["16", "w8a8"], tmp_path / "cut")
    model, original = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (out, whole))
    assert len(model.model.layers) == 2
    model(torch.tensor([[1, 2]]))  # the first call unpacks the weights
    for ours, theirs in zip(model.model.layers, original.model.layers, strict=False):
        expected = theirs.mlp.up_proj.weight
        assert (ours.mlp.up_proj.weight.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_devices_that_vllm_cannot_be_given_are_refused(tmp_path: Path) -> None:
    model = serve_cases.tiny_llama(tmp_path / "model", num_hidden_layers=SHALLOW)
    given = {"options": ["16"], "python": tmp_path, "log": tmp_path / "log"}
    device = {"name": "d", "kind": "cpu", "source": "measured", "cores": 1, "slowdown": 2.0}
    with pytest.raises(ConfigError, match=r"slowdown is 2\.0, but vLLM cannot be slowed down"):
        profile_with_vllm(model, "m", device, SETTINGS, tmp_path / "out", **given)
    with pytest.raises(ConfigError, match="compares 2 with more"):
        profile_with_vllm(model, "m", {**device, "slowdown": 1.0}, SETTINGS, tmp_path / "out", **given)
