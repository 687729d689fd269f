"""Layer files: what is written is read, bit for bit, and what is damaged is refused by name."""

from pathlib import Path

import pytest
import torch
from quant_cases import fits, random_weight, stored_weight
from safetensors.torch import save_file

from llmpq.errors import ArtifactError, ConfigError, LlmpqError
from llmpq.quant.files import LayerTensors, plain_layer, read_layer, write_layer
from llmpq.quant.layer_index import find_layer_file, layer_file_name, layers_digest
from llmpq.quant.options import OPTIONS

NORMS = {"attention_norm.weight": torch.linspace(0, 1, 64), "qkv.bias": torch.linspace(-1, 1, 96)}


def layer(option: str, index: int = 3) -> LayerTensors:
    operators = {"qkv": stored_weight(option, random_weight(96, 64, 1)), "o": stored_weight(option, random_weight(64, 64, 2))}
    return LayerTensors(index, option, operators, dict(NORMS), {"losses": {"qkv": 1.5}})


@pytest.mark.parametrize("option", [option for option in OPTIONS if fits(option, (48, 64))])
def test_round_trip(option: str, tmp_path: Path) -> None:
    before, path = layer(option), tmp_path / layer_file_name(3, option)
    digest = write_layer(path, before)
    after = read_layer(path)
    assert (after.layer, after.option, after.info) == (3, option, before.info)
    assert after.named().keys() == before.named().keys()
    for name, tensor in before.named().items():
        assert after.named()[name].dtype == tensor.dtype
        assert torch.equal(after.named()[name], tensor)
    assert after.content_sha256() == before.content_sha256() == digest
    assert torch.equal(after.bias("qkv"), NORMS["qkv.bias"])
    assert after.bias("o") is None
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + before.stored_bytes


def test_the_same_layer_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_layer(tmp_path / name, layer("4"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_files_are_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "layer-003.4.safetensors"
    write_layer(path, layer("4"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"layer-003\.4\.safetensors: truncated or damaged .* run quantise again"):
        read_layer(path)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "layer-003.w8a8.safetensors"
    write_layer(path, layer("w8a8"))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"layer-003\.w8a8\.safetensors: truncated or damaged .*digest"):
        read_layer(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.safetensors: no such layer file; run quantise"):
        read_layer(tmp_path / "gone.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="not an llmpq layer file"):
        read_layer(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here, but quite a lot of text instead")
    with pytest.raises(ArtifactError, match=r"text\.safetensors: truncated or damaged"):
        read_layer(tmp_path / "text.safetensors")
    broken = layer("4")
    del broken.operators["o"]["scales"]
    write_layer(tmp_path / "broken.safetensors", broken)
    with pytest.raises(ArtifactError, match=r"operator o holds \['codes'\], but option '4' needs \['codes', 'scales'\]"):
        read_layer(tmp_path / "broken.safetensors")
    wide = layer("4")
    wide.operators["o"]["scales"] = wide.operators["o"]["scales"].float()
    write_layer(tmp_path / "wide.safetensors", wide)
    with pytest.raises(ArtifactError, match=r"o\.scales is torch\.float32, expected torch\.bfloat16"):
        read_layer(tmp_path / "wide.safetensors")


def test_a_layer_is_found_in_any_group_but_only_once(tmp_path: Path) -> None:
    write_layer(tmp_path / "layers-000-004" / layer_file_name(3, "4"), layer("4"))
    write_layer(tmp_path / "layers-000-004.partial" / layer_file_name(3, "3"), layer("3"))
    assert find_layer_file(tmp_path, 3, "4") == tmp_path / "layers-000-004/layer-003.4.safetensors"
    assert find_layer_file(tmp_path / "layers-000-004", 3, "4").is_file()
    with pytest.raises(ArtifactError, match="quantise layer 3 at option '3'"):
        find_layer_file(tmp_path, 3, "3")
    with pytest.raises(ConfigError, match="unknown weight option"):
        find_layer_file(tmp_path, 3, "five")
    write_layer(tmp_path / "layers-003-003" / layer_file_name(3, "4"), layer("4"))
    with pytest.raises(ArtifactError, match="there twice"):
        find_layer_file(tmp_path, 3, "4")
    groups = [tmp_path / "layers-005-006", tmp_path / "layers-003-003"]  # an old group beside those in use is not looked at
    assert find_layer_file(groups, 3, "4") == tmp_path / "layers-003-003/layer-003.4.safetensors"
    with pytest.raises(ArtifactError, match="there twice"):
        find_layer_file(tmp_path, 3, "4")


def test_the_digest_is_of_the_weights_and_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_layer(first, layer("4", 0))
    write_layer(second, layer("3", 1))
    assert layers_digest([first, second]) != layers_digest([second, first])
    before = layers_digest([first, second])
    renamed = layer("4", 0)
    renamed.info = {"losses": {"qkv": 99.0}}
    write_layer(first, renamed)
    assert layers_digest([first, second]) == before
    renamed.vectors["qkv.bias"] = renamed.vectors["qkv.bias"] + 1e-3
    write_layer(first, renamed)
    assert layers_digest([first, second]) != before


def test_plain_layers(tmp_path: Path) -> None:
    tensors = {"qkv.weight": random_weight(96, 64), **NORMS}
    half = plain_layer(tensors, ["qkv"], 0, "16")
    assert half.operators["qkv"]["weight"].dtype == torch.float16
    assert half.vectors.keys() == NORMS.keys()
    assert torch.equal(plain_layer(tensors, ["qkv"], 0, "32").operators["qkv"]["weight"], tensors["qkv.weight"])
    with pytest.raises(ConfigError, match="has to be quantised"):
        plain_layer(tensors, ["qkv"], 0, "4")
    with pytest.raises(LlmpqError, match=r"layer 0 qkv: a weight reaches 1e\+06, beyond fp16"):
        plain_layer({"qkv.weight": torch.full((16, 64), 1e6)}, ["qkv"], 0, "16")
