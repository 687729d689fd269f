"""Embedding and head at 8 bits in every family: alone on a stage, together, tied or not, against their dequantised tables."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_families
import torch
from tiny_families import CASES

from llmpq.errors import ArtifactError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.ends import Embedding, Head
from llmpq.model.loading import StageLoader
from llmpq.quant.bytes import resident_end_bytes, shared_end_bytes
from llmpq.quant.ends import quantise_ends
from llmpq.quant.files import read_layer
from llmpq.quant.kernels.cpu import make_linear

LAYERS = ["32"] * 3


def ids(vocab: int) -> torch.Tensor:
    return torch.randint(3, vocab, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_a_stage_with_either_end_or_both_equals_its_dequantised_tables(case: str, tmp_path: Path) -> None:
    directory = tiny_families.build(case, tmp_path / "model").directory
    quantise_ends(directory, tmp_path / "ends", options=["8"])
    checkpoint = Checkpoint(directory)
    spec, tokens = checkpoint.spec, ids(checkpoint.spec.vocab)
    both = StageLoader(directory, tmp_path / "ends").load(0, LAYERS, "8", "8")
    front = StageLoader(directory, tmp_path / "ends").load(0, LAYERS[:1], "8")
    back = StageLoader(directory, tmp_path / "ends").load(1, LAYERS[1:], None, "8")
    plain = StageLoader(directory).load(0, LAYERS, "32", "32")
    tables = {}
    for end in ("embedding", "head"):
        stored = read_layer(tmp_path / "ends" / f"{end}.8.safetensors").operators[end]
        tables[end] = {**checkpoint.end(end), f"{end}.weight": stored["codes"].float() * stored["scales"].float()[:, None]}
    plain.embedding = Embedding(spec, tables["embedding"])
    hidden = plain.hidden(tokens)
    assert torch.equal(both.hidden(tokens), hidden)
    assert torch.equal(back.hidden(front.hidden(tokens)), hidden)
    logits = both.logits(tokens)
    assert back.head is not None
    assert torch.equal(back.head(hidden), logits)
    exact = Head(spec, tables["head"], make_linear("32", {"weight": tables["head"]["head.weight"]}))(hidden)
    assert (logits - exact).norm() / exact.norm() < 0.006  # bf16 inputs and outputs
    assert front.digest_lines + back.digest_lines == both.digest_lines != plain.digest_lines
    whole = resident_end_bytes(spec, "head", "8")
    assert back.resident_bytes["head"] == whole
    assert both.resident_bytes["head"] == whole - shared_end_bytes(spec, "8")
    assert both.resident_bytes["embedding"] == front.resident_bytes["embedding"] == resident_end_bytes(spec, "embedding", "8")
    assert (shared_end_bytes(spec, "8") > 0) == spec.tied_embeddings


def test_tied_ends_at_one_option_are_one_table(tmp_path: Path, tiny_llama_dir: Path) -> None:
    quantise_ends(tiny_llama_dir, tmp_path / "ends", options=["8", "w8a8"])
    for embedding, head in itertools.product(("16", "8"), ("16", "8", "w8a8")):
        stage = StageLoader(tiny_llama_dir, tmp_path / "ends").load(0, [], embedding, head)
        assert stage.embedding is not None
        assert stage.head is not None
        assert (stage.embedding.table is stage.head.operator) == (embedding == head == "8")
        assert [line.rsplit(" ", 1)[0] for line in stage.digest_lines] == [f"embedding {embedding}", f"head {head}"]


def test_tied_ends_of_two_makings_are_refused(write_llama: Callable[..., Path], tmp_path: Path, tiny_llama_dir: Path) -> None:
    quantise_ends(tiny_llama_dir, tmp_path / "ends", options=["8"])
    quantise_ends(write_llama(tmp_path / "other", seed=9), tmp_path / "others", options=["8"])
    shutil.copyfile(tmp_path / "others" / "head.8.safetensors", tmp_path / "ends" / "head.8.safetensors")
    with pytest.raises(
        ArtifactError, match=r"ends: the model ties embedding and head, but their files at option '8' hold other codes; quantise"
    ):
        StageLoader(tiny_llama_dir, tmp_path / "ends").load(0, [], "8", "8")
