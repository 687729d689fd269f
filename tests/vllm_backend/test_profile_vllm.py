"""A profile through vLLM: taken of a tiny model, fitted, planned with, and compared with a run."""

from pathlib import Path

import pytest
import serve_cases

from llmpq import artifacts
from llmpq.cost.latency import write_cost
from llmpq.vllm_serve.profile import profile_with_vllm

SETTINGS = {"name": "tiny", "micro_batches": [1, 4], "prompt_tokens": [8, 16], "contexts": [16, 24], "repeats": 2, "warmup": 1}
DEVICE = {"name": "cpu", "kind": "cpu", "source": "measured", "cores": 1, "slowdown": 1.0}


@pytest.mark.slow
def test_a_profile_has_every_shape_of_its_grid_and_can_be_fitted(python: Path, tmp_path: Path) -> None:
    model = serve_cases.tiny_llama(tmp_path / "model", num_hidden_layers=8, hidden_size=256, intermediate_size=768)
    given = {"options": ["16", "w8a8"], "python": python, "compiled": False, "log": tmp_path / "log"}
    document = profile_with_vllm(model, "tiny", DEVICE, SETTINGS, tmp_path / "profile.json", **given)
    assert document == artifacts.read(tmp_path / "profile.json", "profile")
    assert (document["backend"], document["engine"]["compile"]) == ("vllm", False)
    assert document["engine"]["name"].startswith("vllm 0.")
    found = {(row["part"], row["option"], row["phase"], row["micro_batch"], row["context"]) for row in document["rows"]}
    shapes = {("prefill", size, length) for size in (1, 4) for length in (8, 16)}
    shapes |= {("decode", size, length) for size in (1, 4) for length in (16, 24)}
    for part, option in (("layer", "16"), ("layer", "w8a8"), ("embedding", "16"), ("head", "16"), ("overhead", "-")):
        assert {(part, option, *shape) for shape in shapes} <= found
    times = {(row["part"], row["option"], row["phase"], row["micro_batch"], row["context"]): row["p50_ms"] for row in document["rows"]}
    assert all(ms > 0 for ms in times.values())
    assert times["layer", "16", "prefill", 4, 16] > 1.3 * times["layer", "16", "prefill", 1, 8]  # eight times the tokens
    assert {row["phase"] for row in document["rows"] if row["part"] == "scheduler"} == {"decode"}
    assert write_cost(tmp_path / "profile.json", tmp_path / "cost.json", backend="vllm")["backend"] == "vllm"
