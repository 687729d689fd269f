"""A profile of a tiny random model: complete, in order, slowed down as its device is, and refused where it does not belong."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmpq import artifacts
from llmpq.cost.latency import write_cost
from llmpq.errors import ArtifactError, LlmpqError
from llmpq.profile import stack
from llmpq.profile.grid import Point
from llmpq.profile.layers import profile_device, rows_of
from llmpq.profile.workspace import peak_temporary_bytes
from llmpq.quant.bytes import stored_linear_bytes
from llmpq.quant.options import OUTLIER_COLUMNS, outlier_count, weight_option

DEVICE = {"name": "cpu-test", "kind": "cpu", "cores": 1, "slowdown": 1.0, "source": "emulated"}
SETTINGS = {"name": "tiny", "micro_batches": [1, 4], "prompt_tokens": [8, 16], "contexts": [8, 24], "repeats": 2, "warmup": 1}
OPTIONS = ["16", "8", "w8a8-outlier", "w8a8", "bnb-int8", "bnb-nf4", "4", "3"]
END_OPTIONS = ["16", "8", "w8a8"]
ENDS = [("embedding", "16"), ("embedding", "8"), ("head", "16"), ("head", "8"), ("head", "w8a8")]


def quietly(_text: str) -> None:
    pass


@pytest.fixture(scope="module")
def profiled(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("profile") / "cpu-test.json"
    return out, profile_device(tiny_llama_dir, "tiny", DEVICE, SETTINGS, out, options=OPTIONS, end_options=END_OPTIONS, progress=quietly)


def test_every_part_phase_option_and_shape_is_there_once(profiled: tuple[Path, dict[str, Any]]) -> None:
    out, document = profiled
    assert artifacts.read(out, "profile") == json.loads(json.dumps(document))
    found = [(row["part"], row["phase"], row["option"], row["micro_batch"], row["tokens"], row["context"]) for row in document["rows"]]
    expected = set()
    for v in (1, 4):
        for s in (8, 16):
            expected |= {("layer", "prefill", option, v, s, s) for option in OPTIONS}
            expected |= {(end, "prefill", option, v, s, s) for end, option in ENDS} | {("overhead", "prefill", "-", v, s, s)}
        for t in (8, 24):
            expected |= {("layer", "decode", option, v, 1, t) for option in OPTIONS} | {("overhead", "decode", "-", v, 1, t)}
        expected |= {(end, "decode", option, v, 1, 24) for end, option in ENDS}
    assert set(found) == expected
    assert len(found) == len(expected)
    for row in document["rows"]:
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"]
        assert row["repeats"] >= 2


def test_workspace_is_what_the_shapes_need(profiled: tuple[Path, dict[str, Any]]) -> None:
    rows = {(r["part"], r["phase"], r["option"], r["micro_batch"], r["tokens"]): r["workspace_bytes"] for r in profiled[1]["rows"]}
    # The gated half of a layer holds its input, gate and up (fused), and their product: at least v·s·(64 + 3·128)·4 bytes.
    assert rows["layer", "prefill", "16", 4, 16] >= 4 * 16 * (64 + 3 * 128) * 4
    assert rows["layer", "prefill", "16", 4, 16] < 3 * 4 * 16 * (64 + 3 * 128) * 4
    assert rows["layer", "prefill", "16", 4, 16] > 3 * rows["layer", "prefill", "16", 1, 16]
    assert rows["head", "decode", "16", 4, 1] >= 4 * 96 * 4  # the logits


def test_a_slowed_device_takes_that_much_longer(profiled: tuple[Path, dict[str, Any]], tiny_llama_dir: Path, tmp_path: Path) -> None:
    slow = profile_device(
        tiny_llama_dir, "tiny", {**DEVICE, "slowdown": 4.0}, SETTINGS, tmp_path / "slow.json", options=["16"], progress=quietly
    )
    assert slow["slowdown"] == 4.0

    def typical(document: dict[str, Any]) -> float:
        return float(np.median([row["p10_ms"] for row in document["rows"] if row["part"] == "layer" and row["option"] == "16"]))

    assert 2.0 < typical(slow) / typical(profiled[1]) < 8.0


def test_the_process_is_as_it_was_afterwards(profiled: tuple[Path, dict[str, Any]], tiny_llama_dir: Path, tmp_path: Path) -> None:
    affinity, threads = os.sched_getaffinity(0), torch.get_num_threads()
    settings = {**SETTINGS, "micro_batches": [1], "prompt_tokens": [8], "contexts": [8]}
    profile_device(tiny_llama_dir, "tiny", DEVICE, settings, tmp_path / "p.json", options=["16"], cores=[min(affinity)], progress=quietly)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (affinity, threads)


@pytest.mark.parametrize("inputs", [576, 1536, 48])
def test_the_layer_timed_keeps_as_many_columns_as_quantising_and_its_bytes(inputs: int) -> None:
    stored = stack.stored(torch.randn(64, inputs), weight_option("w8a8-outlier"))
    assert len(stored["outlier_columns"]) == outlier_count(inputs) == min(OUTLIER_COLUMNS, inputs // 2)
    assert sum(tensor.nbytes for tensor in stored.values()) == stored_linear_bytes("w8a8-outlier", 64, inputs)


def test_rows_are_per_layer_and_without_the_empty_call() -> None:
    empty = Point("overhead", "decode", "-", 2, 8, 1, print, 0, samples=[0.5, 0.5], bare_samples=[0.1, 0.1])
    layer = Point("layer", "decode", "16", 2, 8, 4, print, 0, samples=[0.9, 2.1, 0.5])
    rows = {row["part"]: row for row in rows_of([empty, layer])}
    assert rows["layer"]["p50_ms"] == pytest.approx(200.0)  # (0.9 − 0.1) / 4 seconds
    assert rows["overhead"]["p50_ms"] == pytest.approx(500.0)  # what the sleep costs beyond its due stays in the overhead


def test_what_a_cold_call_costs_goes_to_the_overhead() -> None:
    empty = Point("overhead", "decode", "-", 2, 8, 1, print, 0, samples=[0.1], bare_samples=[0.1])
    points = [empty]
    for option, beyond in (("16", 0.2), ("8", 0.4), ("4", 3.0)):
        own = Point("layer", "decode", option, 2, 8, 4, print, 0, samples=[0.1 + 4 * 0.5])
        own.prelude, own.prelude_layers, own.prelude_samples = print, 2, [0.1 + 2 * 0.5 + beyond]
        points.append(own)
    rows = {(row["part"], row["option"]): row for row in rows_of(points)}
    assert rows["layer", "8"]["p50_ms"] == pytest.approx(500.0)
    assert rows["overhead", "-"]["p50_ms"] == pytest.approx(100.0 + 400.0)  # the median option's


def test_peak_temporary_bytes_counts_what_is_held_at_once() -> None:
    x = torch.zeros(1000, dtype=torch.float32)

    def call() -> torch.Tensor:
        doubled = x + x  # 4,000 bytes
        shifted = doubled + 1  # 8,000 at once
        del doubled
        return torch.cat([shifted, shifted])  # 4,000 + 8,000

    assert peak_temporary_bytes(call) == 12_000


@pytest.mark.parametrize(
    ("device", "settings", "options", "message"),
    [
        ({"kind": "cuda"}, {}, ["16"], "cpu-test is of kind 'cuda'"),
        ({}, {"micro_batches": []}, ["16"], r"profile.micro_batches is \[\]"),
        ({}, {"contexts": [0, 8]}, ["16"], r"profile.contexts is \[0, 8\]"),
        ({}, {"repeats": 0}, ["16"], "repeats must be at least 1"),
        ({}, {}, ["5"], "unknown weight option '5'"),
        ({"cores": 4096}, {}, ["16"], "a device of 4096 cores cannot be profiled here"),
        ({"slowdown": 0.5}, {}, ["16"], "slowdown is 0.5"),
        ({}, {"contexts": [4096]}, ["16"], "4096 tokens are more than the llama model allows"),
    ],
)
def test_what_cannot_be_profiled_is_said(
    tiny_llama_dir: Path, tmp_path: Path, device: dict[str, Any], settings: dict[str, Any], options: list[str], message: str
) -> None:
    out = tmp_path / "p.json"
    with pytest.raises(LlmpqError, match=message):
        profile_device(tiny_llama_dir, "tiny", {**DEVICE, **device}, {**SETTINGS, **settings}, out, options=options, progress=quietly)
    assert not out.exists()


def test_a_truncated_profile_is_refused(profiled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(profiled[0].read_bytes()[:2000])
    with pytest.raises(ArtifactError, match=r"broken.json: not a complete JSON file"):
        write_cost(broken, tmp_path / "cost.json")
    assert not (tmp_path / "cost.json").exists()


@pytest.mark.parametrize(("key", "expected"), [("model", "other-model"), ("device", "other-device")])
def test_a_profile_of_something_else_is_refused(profiled: tuple[Path, dict[str, Any]], tmp_path: Path, key: str, expected: str) -> None:
    with pytest.raises(ArtifactError, match=rf"key '{key}' is '.*', expected '{expected}'"):
        write_cost(profiled[0], tmp_path / "cost.json", **{key: expected})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: row.pop("p50_ms"), "'p50_ms' is a required property"),
        (lambda row: row.update(p50_ms=-1.0), "less than the minimum"),
        (lambda row: row.update(part="wheel"), "'wheel' is not one of"),
        (lambda row: row.update(p50_ms=float("nan")), "NaN"),
    ],
)
def test_an_impossible_row_is_refused(profiled: tuple[Path, dict[str, Any]], tmp_path: Path, spoil: Any, message: str) -> None:
    document = json.loads(profiled[0].read_text(encoding="utf-8"))
    spoil(document["rows"][0])
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        write_cost(path, tmp_path / "cost.json")
