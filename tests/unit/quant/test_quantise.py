"""Quantising a group: what the manifest says is what the files hold, and a stopped run goes on where it stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_cases import fits

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError, LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.quant import quantise
from llmpq.quant.bytes import resident_layer_bytes, stored_layer_bytes
from llmpq.quant.calibrate import calibrate
from llmpq.quant.calibration import Calibration
from llmpq.quant.dequantise import dequantise
from llmpq.quant.files import read_layer
from llmpq.quant.gptq import output_loss
from llmpq.quant.layer_index import layer_file_name, read_header
from llmpq.quant.options import OPTIONS
from llmpq.quant.quantise import quantise_group, read_manifests

ALL = [option for option in OPTIONS if fits(option, (64, 64))]


@pytest.fixture(scope="module")
def group(tiny_llama_dir: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "layers-000-003"
    quantise_group(tiny_llama_dir, calibration, out, first=0, last=3, options=ALL, settings={})
    return out


def test_the_directory_holds_a_file_for_each_row_and_nothing_else(group: Path) -> None:
    manifest = artifacts.read(group / "manifest.json", "quantised")
    expected = {layer_file_name(layer, option) for layer in range(4) for option in ALL}
    assert {row["file"] for row in manifest["rows"]} == expected
    assert {path.name for path in group.iterdir()} == expected | {"manifest.json"}
    assert not group.with_name(group.name + ".partial").exists()
    assert (manifest["first_layer"], manifest["last_layer"], manifest["options"]) == (0, 3, ALL)


def test_bytes_digests_and_losses_are_those_of_the_files(group: Path, tiny_llama_dir: Path, calibration: Path) -> None:
    checkpoint, statistics = Checkpoint(tiny_llama_dir), Calibration(calibration)
    for (layer, option), row in read_manifests([group]).items():
        stored = read_layer(row["path"])
        header = int.from_bytes(row["path"].read_bytes()[:8], "little")
        assert row["path"].stat().st_size == 8 + header + row["stored_bytes"]
        assert row["stored_bytes"] == stored_layer_bytes(checkpoint.spec, option)
        assert row["resident_bytes"] == resident_layer_bytes(checkpoint.spec, option)
        assert row["sha256"] == stored.content_sha256() == read_header(row["path"])["content_sha256"]
        for name, operator in row["operators"].items():
            weight, hessian = checkpoint.layer(layer)[f"{name}.weight"], statistics.operator(layer, name).hessian
            served = dequantise(OPTIONS[option], stored.operators[name])
            assert operator["loss"] == pytest.approx(output_loss(weight, served, hessian), rel=1e-4, abs=1e-8)
            energy = output_loss(weight, torch.zeros_like(weight), hessian)
            assert operator["relative_loss"] == pytest.approx(operator["loss"] / energy)


def test_fewer_bits_lose_more_and_gptq_loses_less(group: Path, tiny_llama_dir: Path, calibration: Path, tmp_path: Path) -> None:
    nearest = tmp_path / "rtn"
    quantise_group(tiny_llama_dir, calibration, nearest, first=0, last=3, options=["4", "3"], settings={"method": "rtn"})
    ours, theirs = read_manifests([group]), read_manifests([nearest])
    for layer in range(4):
        for name in ("qkv", "o", "gate_up", "down"):
            losses = [ours[layer, option]["operators"][name]["loss"] for option in ("32", "16", "8", "4", "3")]
            assert losses == sorted(losses)
            for option in ("4", "3"):
                assert ours[layer, option]["operators"][name]["loss"] < theirs[layer, option]["operators"][name]["loss"]


def test_options_of_one_grid_share_their_codes(group: Path) -> None:
    for name in ("qkv", "o", "gate_up", "down"):
        eight, both = (read_layer(group / layer_file_name(2, option)).operators[name] for option in ("8", "w8a8"))
        assert torch.equal(eight["codes"], both["codes"])
        assert torch.equal(eight["scales"], both["scales"])


def test_outlier_columns_are_those_with_the_largest_inputs(group: Path, calibration: Path) -> None:
    found = read_layer(group / layer_file_name(1, "w8a8-outlier")).operators["down"]
    largest = Calibration(calibration).operator(1, "down").max_abs.topk(32).indices
    assert found["outlier_columns"].tolist() == sorted(largest.tolist())


@pytest.mark.parametrize("option", ALL)
def test_a_stage_runs_from_the_files(group: Path, tiny_llama_dir: Path, option: str) -> None:
    ends = {"first_layer": 0, "embedding": "16", "head": "16"}
    ids = torch.arange(20).view(2, 10)
    model = StageModel.load(tiny_llama_dir, group.parent, options=[option] * 4, **ends)
    exact = StageModel.load(tiny_llama_dir, None, options=["32"] * 4, **ends).logits(ids)
    error = float((model.logits(ids) - exact).norm() / exact.norm())
    limit = {"32": 2e-3, "16": 5e-3, "bf16": 0.01}.get(option) or {8: 0.03, 4: 0.3, 3: 0.6, 2: 0.95}[OPTIONS[option].bits]
    assert error < (0.06 if OPTIONS[option].quantises_activations else limit)


def test_a_killed_run_goes_on_where_it_stopped(
    tiny_llama_dir: Path, calibration: Path, group: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, written = tmp_path / "layers-000-003", quantise.write_layer, []

    def stop_at_the_fifth(path: Path, layer: Any) -> str:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, layer)

    def run() -> dict[str, Any]:
        return quantise_group(tiny_llama_dir, calibration, out, first=0, last=3, options=["4", "3"], settings={})

    with monkeypatch.context() as patch:
        patch.setattr(quantise, "write_layer", stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not out.exists()
    partial = tmp_path / "layers-000-003.partial"
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("layer-*")}
    assert sorted(kept) == sorted(written)
    damaged = partial / written[1]
    damaged.write_bytes(damaged.read_bytes()[:500])
    manifest = run()
    assert not partial.exists()
    for name in (written[0], written[2], written[3]):
        assert (out / name).stat().st_mtime_ns == kept[name]
    whole = {(row["layer"], row["option"]): row["sha256"] for row in artifacts.read(group / "manifest.json", "quantised")["rows"]}
    assert all(row["sha256"] == whole[row["layer"], row["option"]] for row in manifest["rows"])


def test_a_run_that_was_killed_outright_does_only_the_rest(tiny_llama_dir: Path, calibration: Path, group: Path, tmp_path: Path) -> None:
    """SIGKILL, so nothing can be tidied up: what is there is whole, is kept, and the second run makes what is missing."""
    out, partial = tmp_path / "layers-000-003", tmp_path / "layers-000-003.partial"
    command = [
        sys.executable,
        "-m",
        "llmpq",
        "quantise",
        tiny_llama_dir,
        calibration,
        out,
        "--layers",
        "0",
        "3",
        "--options",
        ",".join(ALL),
    ]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(partial.glob("layer-001.*.safetensors")) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("layer-*.safetensors")}
    assert len(ALL) < len(kept) < 4 * len(ALL)
    manifest = quantise_group(tiny_llama_dir, calibration, out, first=0, last=3, options=ALL, settings={})
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    whole = {row["file"]: row["sha256"] for row in artifacts.read(group / "manifest.json", "quantised")["rows"]}
    assert {row["file"]: row["sha256"] for row in manifest["rows"]} == whole


def test_memory_is_bounded_by_the_layer(tmp_path: Path) -> None:
    """The fp32 weights, and of the largest operator the Hessian, its factor and what making one from the other takes; 96 MiB besides."""
    script = Path(__file__).with_name("measure_quantise.py")
    command = [sys.executable, str(script), str(tmp_path), "768", "3072", "4,8"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread).stdout)
    assert found["peak_bytes"] - found["before_bytes"] < found["weight_bytes"] + 4 * found["hessian_bytes"] + 3 * 2**25


def test_files_of_other_settings_are_not_taken_over(tiny_llama_dir: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "layers-000-000"
    quantise_group(tiny_llama_dir, calibration, out, first=0, last=0, options=["4", "3"], settings={"method": "rtn"})
    nearest = {path.name: read_header(path)["content_sha256"] for path in out.glob("layer-*")}
    shutil.move(out, tmp_path / "layers-000-000.partial")
    manifest = quantise_group(tiny_llama_dir, calibration, out, first=0, last=0, options=["4"], settings={})
    assert manifest["rows"][0]["sha256"] != nearest["layer-000.4.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == ["layer-000.4.safetensors", "manifest.json"]


def test_a_finished_group_is_replaced_whole(tiny_llama_dir: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "group"
    for options in (["4", "8"], ["3", "4"]):
        quantise_group(tiny_llama_dir, calibration, out, first=1, last=1, options=options, settings={"method": "rtn"})
    assert sorted(path.name for path in out.glob("layer-*")) == ["layer-001.3.safetensors", "layer-001.4.safetensors"]


def test_groups_do_not_overlap(group: Path) -> None:
    with pytest.raises(ArtifactError, match="layer 0 at option '32' is also in"):
        read_manifests([group, group])
    with pytest.raises(ArtifactError, match=r"nowhere/manifest\.json: no such file"):
        read_manifests(["nowhere"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ["5"]}, "unknown weight option '5'"),
        ({"last": 4}, "the model has layers 0 to 3"),
        ({"first": 3, "last": 2}, "cannot quantise layers 3 to 2"),
        ({"settings": {"method": "magic"}}, "'magic' is unknown; known are gptq, rtn"),
        ({"settings": {"damping": -0.1}}, "negative"),
    ],
)
def test_bad_settings(tiny_llama_dir: Path, calibration: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"first": 0, "last": 0, "options": ["4"], "settings": {}, **changes}
    with pytest.raises(ConfigError, match=message):
        quantise_group(tiny_llama_dir, calibration, tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_shapes_that_do_not_fit_are_named(write_llama: Callable[..., Path], tmp_path: Path) -> None:
    """An FFN of 96 is no multiple of 64: the message says where and why."""
    directory = write_llama(tmp_path / "model", intermediate_size=96)
    calibrate(directory, [[1, 2, 3, 4]] * 2, tmp_path / "c.safetensors", {})
    with pytest.raises(LlmpqError, match="layer 0, operator down, option '4': 96 inputs are no multiple of the group size 64"):
        quantise_group(directory, tmp_path / "c.safetensors", tmp_path / "out", first=0, last=0, options=["4"], settings={})


def test_another_models_calibration_is_refused(write_llama: Callable[..., Path], calibration: Path, tmp_path: Path) -> None:
    directory = write_llama(tmp_path / "model", num_hidden_layers=2)
    with pytest.raises(ArtifactError, match="calibrated for 4 layers"):
        quantise_group(directory, calibration, tmp_path / "out", first=0, last=0, options=["4"], settings={})
