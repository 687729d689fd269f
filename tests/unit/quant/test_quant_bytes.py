"""Bytes: stored ones equal the file, resident ones what a process that packs many layers really keeps."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quant_cases import fits, stored

from llmpq.errors import ConfigError
from llmpq.model.spec import ModelSpec
from llmpq.quant.bytes import (
    kv_layer_bytes,
    resident_end_bytes,
    resident_layer_bytes,
    resident_linear_bytes,
    stored_layer_bytes,
    stored_linear_bytes,
    vector_bytes,
)
from llmpq.quant.options import OPTIONS

SMOLLM2 = ((960, 576), (576, 576), (3072, 576), (576, 1536))
LAYERS = 20
MEASURED = [option for option in OPTIONS if all(fits(option, shape) for shape in SMOLLM2)]


def spec(**changes: object) -> ModelSpec:
    values = {
        "family": "llama", "layers": 30, "hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "vocab": 49152,
        "max_positions": 8192, "norm": "rms", "norm_eps": 1e-5, "activation": "silu", "gated": True, "positions": "rope",
    }  # fmt: skip
    return ModelSpec(**{**values, **changes})


@functools.cache
def measurements() -> dict[str, dict[str, int]]:
    script = Path(__file__).with_name("measure_resident.py")
    command = [sys.executable, str(script), str(LAYERS), *(f"{rows}x{columns}" for rows, columns in SMOLLM2)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measured(option: str) -> dict[str, int]:
    return measurements()[option]


def predicted(option: str) -> int:
    return LAYERS * sum(resident_linear_bytes(option, *shape) for shape in SMOLLM2)


@pytest.mark.parametrize("option", MEASURED)
def test_resident_bytes_are_what_packing_keeps(option: str) -> None:
    assert predicted(option) == pytest.approx(measured(option)["allocated"], rel=0.02)


@pytest.mark.parametrize("option", MEASURED)
def test_the_system_never_counts_more(option: str) -> None:
    """Pages that FBGEMM's padding never touches are allocated but not resident, so the system may count less."""
    assert measured(option)["resident"] < 1.02 * predicted(option) + 2**20  # a few pages of the process itself
    if option not in ("w8a8", "w8a8-outlier"):
        assert measured(option)["resident"] > 0.97 * predicted(option)


def test_the_measurement_would_notice_ten_percent() -> None:
    assert 1.1 * predicted("4") != pytest.approx(measured("4")["allocated"], rel=0.02)


@pytest.mark.parametrize(
    ("option", "shape"),
    [(option, shape) for option in OPTIONS for shape in [(960, 576), (48, 128), (16, 192)] if fits(option, shape)],
    ids=str,
)
def test_stored_bytes_of_an_operator(option: str, shape: tuple[int, int]) -> None:
    assert stored_linear_bytes(option, *shape) == sum(tensor.nbytes for tensor in stored(option, *shape).values())


def test_stored_bytes_worked_out_by_hand() -> None:
    assert stored_linear_bytes("32", 64, 128) == 64 * 128 * 4
    assert stored_linear_bytes("16", 64, 128) == 64 * 128 * 2
    assert stored_linear_bytes("8", 64, 128) == 64 * 128 + 64 * 2
    assert stored_linear_bytes("w8a8", 64, 128) == stored_linear_bytes("8", 64, 128)
    assert stored_linear_bytes("w8a8-outlier", 64, 128) == 64 * 128 + 64 * 2 + 32 * 4 + 64 * 32 * 4
    assert stored_linear_bytes("4", 64, 128) == 64 * 64 + 64 * 2 * 2
    assert stored_linear_bytes("3", 64, 128) == 64 * 48 + 64 * 2 * 2
    assert stored_linear_bytes("2", 64, 128) == 64 * 32 + 64 * 2 * 2
    assert stored_linear_bytes("4a-g32", 64, 128) == 64 * 64 + 64 * 4 * (2 + 2)
    assert stored_linear_bytes("3a-row", 64, 128) == 64 * 48 + 64 * (2 + 2)
    assert stored_linear_bytes("8-g128", 64, 256) == 64 * 256 + 64 * 2 * 2


def test_a_layer_is_its_operators_norms_and_biases() -> None:
    plain = spec()
    assert plain.operators() == dict(zip(("qkv", "o", "gate_up", "down"), SMOLLM2, strict=True))
    assert vector_bytes(plain) == 2 * 576 * 4
    assert stored_layer_bytes(plain, "4") == sum(stored_linear_bytes("4", *shape) for shape in SMOLLM2) + 2 * 576 * 4
    assert resident_layer_bytes(plain, "4") == sum(resident_linear_bytes("4", *shape) for shape in SMOLLM2) + 2 * 576 * 4
    assert vector_bytes(spec(norm="layer")) == 4 * 576 * 4
    assert vector_bytes(spec(qkv_bias=True)) == (2 * 576 + 960) * 4
    assert vector_bytes(spec(o_bias=True, mlp_bias=True)) == (2 * 576 + 576 + 3072 + 576) * 4
    assert vector_bytes(spec(gated=False, mlp_bias=True)) == (2 * 576 + 1536 + 576) * 4
    assert vector_bytes(spec(qk_norm=True)) == (2 * 576 + 2 * 64) * 4


def test_narrower_options_take_less_memory() -> None:
    sizes = [resident_layer_bytes(spec(), option) for option in ("32", "16", "w8a8-outlier", "w8a8", "8", "4", "3", "2")]
    assert sizes == sorted(sizes, reverse=True)


def test_ends_and_cache() -> None:
    assert resident_end_bytes(spec(), "embedding", "16") == 49152 * 576 * 2
    assert resident_end_bytes(spec(), "embedding", "32") == 49152 * 576 * 4
    assert resident_end_bytes(spec(), "head", "16") == resident_linear_bytes("16", 49152, 576) + 576 * 4
    assert resident_end_bytes(spec(norm="layer"), "head", "32") == 49152 * 576 * 4 + 2 * 576 * 4
    learned = spec(positions="learned", position_offset=2, embedding_norm=True, norm="layer", final_norm=False)
    assert resident_end_bytes(learned, "embedding", "16") == 49152 * 576 * 2 + (8192 + 2) * 576 * 4 + 2 * 576 * 4
    assert resident_end_bytes(learned, "head", "32") == 49152 * 576 * 4
    assert kv_layer_bytes(spec(), slots=32, capacity=160) == 2 * 32 * 160 * 3 * 64 * 2
    assert kv_layer_bytes(spec(), slots=32, capacity=160, kv="32") == 2 * 32 * 160 * 3 * 64 * 4
    assert kv_layer_bytes(spec(), 1, 1) == 2 * torch.zeros(3, 64, dtype=torch.float16).nbytes
    with pytest.raises(ConfigError, match="the embedding cannot be kept at 'w8a8'; it may have 32, 16, 8"):
        resident_end_bytes(spec(), "embedding", "w8a8")
    with pytest.raises(ConfigError, match="unknown weight option '5'; known options are 32, 16"):
        stored_linear_bytes("5", 64, 64)
