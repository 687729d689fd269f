"""A tiny random Llama checkpoint and its layer files: real weights for a real pipeline, made in a moment."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llmpq.model.checkpoint import Checkpoint
from llmpq.quant.files import LayerTensors, layer_vectors, write_layer
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import weight_option
from llmpq.quant.quantise import nearest

TINY_LLAMA: dict[str, Any] = {
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


def write_tiny_llama(directory: Path, seed: int = 0, **changes: Any) -> Path:
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


def write_rounded_layers(checkpoint: Path, folder: Path, option: str) -> Path:
    """Files of all layers at ``option`` (no outlier columns), rounded to nearest."""
    source, known = Checkpoint(checkpoint), weight_option(option)
    for index in range(source.spec.layers):
        tensors = source.layer(index)
        operators = {operator: nearest(known, tensors[f"{operator}.weight"]) for operator in source.spec.operators()}
        write_layer(folder / layer_file_name(index, option), LayerTensors(index, option, operators, layer_vectors(tensors, operators)))
    return folder
