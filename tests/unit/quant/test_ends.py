"""Embedding and head at 8 bits: files that hold what the manifest says, rows and products that are those of the dequantised table."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError
from llmpq.model.checkpoint import Checkpoint
from llmpq.quant import ends
from llmpq.quant.bytes import resident_end_bytes, shared_end_bytes, stored_end_bytes
from llmpq.quant.ends import quantise_ends
from llmpq.quant.files import LayerTensors, read_layer
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.kernels.table import make_table
from llmpq.quant.layer_index import find_layer_file

OPTIONS = ["16", "8", "w8a8"]
FILES = {"embedding.8.safetensors", "head.8.safetensors", "head.w8a8.safetensors"}


@pytest.fixture(scope="module")
def folder(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "ends"
    quantise_ends(tiny_llama_dir, out, options=OPTIONS)
    return out


def test_a_file_for_every_end_and_option_that_it_may_have(folder: Path, tiny_llama_dir: Path) -> None:
    manifest, spec = artifacts.read(folder / "manifest.json", "quantised_ends"), Checkpoint(tiny_llama_dir).spec
    assert {path.name for path in folder.iterdir()} == FILES | {"manifest.json"}
    assert {row["file"] for row in manifest["rows"]} == FILES
    for row in manifest["rows"]:
        path, stored = folder / row["file"], read_layer(folder / row["file"], row["end"], row["option"])
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + row["stored_bytes"]
        assert row["stored_bytes"] == stored.stored_bytes == stored_end_bytes(spec, row["end"], row["option"])
        assert row["resident_bytes"] == resident_end_bytes(spec, row["end"], row["option"])
        assert row["sha256"] == stored.content_sha256()
        assert 0 < row["relative_error"] < 1e-4
    assert find_layer_file([folder], "head", "8") == find_layer_file(folder.parent, "head", "8") == folder / "head.8.safetensors"


def test_rows_are_exact_and_products_near_those_of_the_dequantised_table(folder: Path, tiny_llama_dir: Path) -> None:
    stored = read_layer(folder / "embedding.8.safetensors").operators["embedding"]
    dequantised = stored["codes"].float() * stored["scales"].float()[:, None]
    ids = torch.tensor([[3, 95, 0], [3, 1, 2]])
    assert torch.equal(make_table("8", stored).rows(ids), dequantised[ids])
    weight = Checkpoint(tiny_llama_dir).embedding()["embedding.weight"]
    assert ((dequantised - weight).abs() <= stored["scales"].float()[:, None] * 0.51).all()  # half a step, and bf16 scales
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    for option, limit in (("8", 0.006), ("w8a8", 0.03)):
        head = read_layer(folder / f"head.{option}.safetensors").operators["head"]
        assert torch.equal(head["codes"], stored["codes"])  # tied, and one grid
        exact = x @ dequantised.t()
        assert (make_linear(option, head)(x) - exact).norm() / exact.norm() < limit


def test_a_stopped_run_goes_on_and_other_weights_are_done_again(
    write_llama: Callable[..., Path], folder: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made, original = tmp_path / "ends", [], ends.rounded_end

    def dies_at_the_head(tensors: Any, end: Any, option: Any) -> LayerTensors:
        if end == "head":
            raise KeyboardInterrupt
        return original(tensors, end, option)

    def counted(tensors: Any, end: Any, option: Any) -> LayerTensors:
        made.append(f"{end} {option.name}")
        return original(tensors, end, option)

    monkeypatch.setattr(ends, "rounded_end", dies_at_the_head)
    with pytest.raises(KeyboardInterrupt):
        quantise_ends(tiny_llama_dir, out, options=OPTIONS)
    assert not out.exists()
    monkeypatch.setattr(ends, "rounded_end", counted)
    quantise_ends(tiny_llama_dir, out, options=OPTIONS)
    assert made == ["head 8", "head w8a8"]
    assert (out / "head.8.safetensors").read_bytes() == (folder / "head.8.safetensors").read_bytes()
    other = write_llama(tmp_path / "other", seed=1)
    made.clear()
    quantise_ends(other, out, options=["8"])
    assert made == ["embedding 8", "head 8"]
    assert {path.name for path in out.iterdir()} == FILES - {"head.w8a8.safetensors"} | {"manifest.json"}


def test_what_an_end_cannot_be_is_refused(folder: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the embedding is looked up: it is kept at 32, 16, 8, not 'w8a8'"):
        make_table("w8a8", read_layer(folder / "head.w8a8.safetensors").operators["head"])
    with pytest.raises(
        ArtifactError,
        match=r"no file head\.8\.safetensors in it or in its groups; quantise the head at option '8', or name the folder of q",
    ):
        find_layer_file(tmp_path, "head", "8")
    with pytest.raises(ArtifactError, match=r"key 'layer' of its header is 'head', expected 'embedding'"):
        read_layer(folder / "head.8.safetensors", "embedding", "8")
    assert quantise_ends(tiny_llama_dir, tmp_path / "none", options=["16"])["rows"] == []


@pytest.mark.parametrize("tied", [True, False])
def test_resident_bytes_are_what_loading_keeps(write_llama: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    """In a process of its own: both ends, alone and together, at every pair of options; within 2 % of what malloc handed out."""
    size = {"vocab_size": 30_000, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "num_hidden_layers": 1}
    model = write_llama(tmp_path / "model", tie_word_embeddings=tied, **size)
    quantise_ends(model, tmp_path / "ends", options=OPTIONS)
    script = Path(__file__).with_name("measure_ends.py")
    done = subprocess.run([sys.executable, str(script), str(model), str(tmp_path / "ends")], capture_output=True, text=True, check=True)
    spec = Checkpoint(model).spec
    for row in json.loads(done.stdout):
        embedding, head = row["ends"]
        expected = sum(resident_end_bytes(spec, end, option) for end, option in (("embedding", embedding), ("head", head)) if option)
        if embedding == head:
            expected -= shared_end_bytes(spec, head)
        assert row["entered"] == expected
        assert row["allocated"] == pytest.approx(expected, rel=0.02), row
    assert bool(shared_end_bytes(spec, "8")) == tied
    assert shared_end_bytes(spec, "16") == shared_end_bytes(spec, "w8a8") == 0
