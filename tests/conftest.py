"""Fixtures that several packages share: the real model, and a tiny random one that needs no download and no transformers."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

REAL_MODEL = Path(__file__).parents[1] / "resources/models/smollm2-135m-instruct/checkpoint"

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """The prepared SmolLM2 checkpoint; `make test` prepares it first."""
    if not (REAL_MODEL / "model.safetensors").is_file():
        pytest.fail(f"{REAL_MODEL} is not there: run `make test`, or `llmpq prepare --model smollm2-135m-instruct`, or deselect real_model")
    return REAL_MODEL


def write_tiny_llama(directory: Path, seed: int = 0, **changes: object) -> Path:
    """A random Llama checkpoint in ``directory`` (config.json and safetensors, no tokenizer); ``changes`` to TINY_LLAMA."""
    config = {**TINY_LLAMA, **changes}
    draw = torch.Generator().manual_seed(seed)
    hidden, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, shared = config["num_attention_heads"] * size, config["num_key_value_heads"] * size

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(hidden, generator=draw)

    tensors = {"model.embed_tokens.weight": torch.randn(config["vocab_size"], hidden, generator=draw), "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        shapes = {"q": (query, hidden), "k": (shared, hidden), "v": (shared, hidden), "o": (hidden, query)}
        at = f"model.layers.{index}."
        tensors |= {f"{at}self_attn.{name}_proj.weight": matrix(*shape) for name, shape in shapes.items()}
        shapes = {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
        tensors |= {f"{at}mlp.{name}_proj.weight": matrix(*shape) for name, shape in shapes.items()}
        tensors |= {f"{at}input_layernorm.weight": norm(), f"{at}post_attention_layernorm.weight": norm()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def write_llama() -> Callable[..., Path]:
    """The function write_tiny_llama, for tests that want other sizes."""
    return write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer Llama checkpoint (hidden 64, 4 heads, 2 KV heads, vocabulary 96)."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def calibration(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the tiny Llama's inputs on 12 random sequences of 32 tokens."""
    from llmpq.quant.calibrate import calibrate

    draw, path = random.Random(1), tmp_path_factory.mktemp("calibration") / "gptq.safetensors"
    calibrate(tiny_llama_dir, [[draw.randrange(96) for _ in range(32)] for _ in range(12)], path, {})
    return path
