"""A Llama-family GGUF file → a Hugging Face directory: config.json, tokenizer, and fp32 safetensors under the usual names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmpq.model.config_file import ModelError
from llmpq.model.gguf_file import GgufFile

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_END_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# llama.cpp's name of a pre-tokenizer that cuts every digit off and then splits as GPT-2 does.
_DIGIT_PRETOKENIZERS = ("smollm",)
_CONTROL_TOKEN = 3


def convert(source: Path, directory: Path) -> None:
    """Write the model directory; the weights are the exact fp32 values of the file's quantised blocks."""
    file = GgufFile(source)
    if file.metadata.get("general.architecture") != "llama":
        raise ModelError(f"{source}: architecture {file.metadata.get('general.architecture')!r}; only llama GGUF files are converted")
    try:
        config = model_config(file)
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        _write_tokenizer(file, directory)
    except KeyError as error:
        raise ModelError(f"{source}: the metadata key {error} is missing") from None
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    tensors = {checkpoint_name(name): _weight(file, name, config) for name in file.names if name != "rope_freqs.weight"}
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod((directory / "config.json").stat().st_mode)  # safetensors writes for the owner only


def model_config(file: GgufFile) -> dict[str, Any]:
    """The file's metadata as a config.json of transformers' LlamaConfig."""
    metadata, heads = file.metadata, file.metadata["llama.attention.head_count"]
    tokens = {
        f"{end}_token_id": metadata.get(f"tokenizer.ggml.{name}_token_id")
        for end, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.rope.dimension_count", metadata["llama.embedding_length"] // heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10000.0)},
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in file.names,
        "dtype": "float32",
        **{key: value for key, value in tokens.items() if value is not None},
    }


def checkpoint_name(name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    stem, _, kind = name.rpartition(".")
    if stem in _END_NAMES:
        return f"{_END_NAMES[stem]}.{kind}"
    block, _, part = stem.partition(".")[2].partition(".")
    if not stem.startswith("blk.") or part not in _LAYER_NAMES:
        raise ModelError(f"the GGUF tensor '{name}' belongs to no part of a Llama decoder")
    return f"model.layers.{block}.{_LAYER_NAMES[part]}.{kind}"


def _weight(file: GgufFile, name: str, config: dict[str, Any]) -> np.ndarray:
    tensor = file.tensor(name)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None:
        return np.ascontiguousarray(tensor)
    # llama.cpp rotates neighbouring rows, transformers rows half a head apart: put them back.
    pairs = tensor.reshape(heads, -1, 2, tensor.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(tensor.shape))


def _write_tokenizer(file: GgufFile, directory: Path) -> None:
    """tokenizer.json and its two companions, of a byte-level BPE vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    metadata = file.metadata
    kind, split = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _DIGIT_PRETOKENIZERS:
        raise ModelError(
            f"{file.path}: a tokenizer of kind {kind!r} / {split!r} is not converted; use the model's Hugging Face directory instead"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    numbers = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in named.items()}
    settings: dict[str, Any] = {key: tokens[number] for key, number in numbers.items() if number is not None}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False))}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if "tokenizer.chat_template" in metadata:
        (directory / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")
