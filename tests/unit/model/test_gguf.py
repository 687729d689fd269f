"""GGUF files written by the gguf package, read and converted by ours."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from llmpq.errors import LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.gguf_file import GgufFile
from llmpq.model.gguf_llama import convert

HEADS, KV_HEADS, HIDDEN, FFN, LAYERS = 4, 2, 64, 96, 2
TOKENS = ["<|end|>", *"abc1", "Ġ", "Ġa", "ab"]
MERGES = ["Ġ a", "a b"]


def weights() -> dict[str, np.ndarray]:
    """Random weights by their llama.cpp names, [out, in]."""
    draw = np.random.default_rng(0)
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (32, HIDDEN), "attn_v": (32, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}
    shapes |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    named = {f"blk.{layer}.{name}.weight": draw.normal(size=shape) for layer in range(LAYERS) for name, shape in shapes.items()}
    named |= {f"blk.{layer}.{name}.weight": draw.normal(size=HIDDEN) for layer in range(LAYERS) for name in ("attn_norm", "ffn_norm")}
    named |= {"token_embd.weight": draw.normal(size=(len(TOKENS), HIDDEN)), "output_norm.weight": draw.normal(size=HIDDEN)}
    return {name: value.astype(np.float32) for name, value in named.items()}


def write_gguf(path: Path, pre: str = "smollm", architecture: str = "llama") -> Path:
    """A llama.cpp file of the weights: norms in fp32, the embedding in 8 bit blocks, the rest in 4 bit blocks with a minimum."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * (len(TOKENS) - 1)])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    for name, value in weights().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if name.startswith("token") else gguf.GGMLQuantizationType.Q4_1
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_metadata_and_tensors_equal_what_the_gguf_package_reads(file: Path) -> None:
    ours, theirs = GgufFile(file), gguf.GGUFReader(file)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value
    assert ours.names == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert np.array_equal(ours.tensor(tensor.name), gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]))


def test_the_converted_directory_is_a_checkpoint_with_the_dequantised_weights(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path)
    checkpoint, source = Checkpoint(tmp_path), GgufFile(file)
    spec = checkpoint.spec
    assert (spec.layers, spec.hidden, spec.kv_heads, spec.vocab, spec.tied_embeddings, spec.eos_token_ids) == (
        2,
        64,
        2,
        len(TOKENS),
        True,
        (0,),
    )
    assert spec.rope is not None
    assert spec.rope.theta == 5000.0
    layer = checkpoint.layer(1)
    assert np.array_equal(layer["down.weight"].numpy(), source.tensor("blk.1.ffn_down.weight"))
    assert np.array_equal(layer["mlp_norm.weight"].numpy(), weights()["blk.1.ffn_norm.weight"])


def test_query_rows_go_back_from_neighbouring_pairs_to_halves(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path)
    size, stored = HIDDEN // HEADS, GgufFile(file).tensor("blk.0.attn_q.weight")
    found = Checkpoint(tmp_path).layer(0)["qkv.weight"]
    for head in range(HEADS):
        for pair in range(size // 2):
            for half in (0, 1):
                row = found[head * size + half * size // 2 + pair]
                assert torch.equal(row, torch.from_numpy(stored[head * size + 2 * pair + half]))


def test_the_tokenizer_is_converted_and_cuts_digits_off(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab a1<|end|>").tokens == ["ab", "Ġa", "1", "<|end|>"]
    assert tokenizer.decode(tokenizer.encode("ab a1").ids) == "ab a1"
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("share", [0.001, 0.05, 0.9])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(LlmpqError, match=r"cut\.gguf: .*(truncated|not a GGUF file)"):
        convert(cut, tmp_path)


def test_other_architectures_tokenizers_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmpqError, match="architecture 'qwen2'; only llama GGUF files are converted"):
        convert(write_gguf(tmp_path / "a.gguf", architecture="qwen2"), tmp_path)
    with pytest.raises(LlmpqError, match="a tokenizer of kind 'gpt2' / 'other' is not converted"):
        convert(write_gguf(tmp_path / "b.gguf", pre="other"), tmp_path)
    (tmp_path / "c.gguf").write_bytes(b"not what it says it is, but long enough to look")
    with pytest.raises(LlmpqError, match=r"c\.gguf: not a GGUF file"):
        convert(tmp_path / "c.gguf", tmp_path)
    with pytest.raises(LlmpqError, match=r"d\.gguf: cannot be read as GGUF"):
        convert(tmp_path / "d.gguf", tmp_path)
