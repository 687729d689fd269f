"""A family is one file and one test: the file alone makes its checkpoints readable, and none is without a test."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import configure
from tiny_families import CASES

from llmpq.model import families
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.names import _by_head, _by_part
from llmpq.model.spec import ModelSpec

NEW_FAMILY = """
from dataclasses import replace

from llmpq.model.families import llama

NAMES = replace(llama.NAMES, layer="blocks.{}.", operators={**llama.NAMES.operators, "o": ("self_attn.dense",)})


def spec(config):
    return llama.gated_rotary_spec(config, "newcomer")
"""


def test_every_family_is_compared_with_transformers() -> None:
    assert {case.split("-")[0] for case in CASES} == set(families.families())


def test_a_file_is_all_that_a_new_family_needs(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/newcomer.py").write_text(NEW_FAMILY, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "code")])
    (tmp_path / "config.json").write_text((tiny_llama_dir / "config.json").read_text())
    raw = load_file(tiny_llama_dir / "model.safetensors")
    renamed = {name.replace(".layers.", ".blocks.").replace(".o_proj.", ".dense."): tensor for name, tensor in raw.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    configure(tmp_path, model_type="newcomer")
    ours, known = Checkpoint(tmp_path), Checkpoint(tiny_llama_dir)
    assert ours.spec.family == "newcomer"
    for found, expected in ((ours.layer(3), known.layer(3)), (ours.head(), known.head()), (ours.embedding(), known.embedding())):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_rows_by_head_and_by_part_are_each_others_inverse() -> None:
    sizes = {"layers": 1, "hidden": 12, "ffn": 48, "heads": 2, "kv_heads": 2, "head_dim": 6, "vocab": 9, "max_positions": 8}
    kinds = {"norm": "layer", "norm_eps": 1e-5, "activation": "gelu_tanh", "gated": False, "positions": "alibi"}
    spec = ModelSpec(family="bloom", **sizes, **kinds)
    rows = torch.arange(36.0)
    assert _by_part(rows, spec)[:12].tolist() == [*range(6), *range(18, 24)]  # q of head 0, q of head 1
    assert torch.equal(_by_head(_by_part(rows, spec), spec), rows)
