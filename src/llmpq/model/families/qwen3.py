"""Qwen3 (dense): Llama's layer with an RMS norm over each query and key head before the rotation."""

from llmpq.model.config_file import ConfigFile
from llmpq.model.families.llama import NAMES, gated_rotary_spec
from llmpq.model.families.qwen2 import window_in_use
from llmpq.model.spec import ModelSpec

__all__ = ["NAMES", "spec"]

# Qwen3Config's default; unlike its siblings hidden_size / heads is not the head size.
_DEFAULT_HEAD_DIM = 128


def spec(config: ConfigFile) -> ModelSpec:
    config.values.setdefault("head_dim", _DEFAULT_HEAD_DIM)
    bias = config.flag("attention_bias", False)
    return gated_rotary_spec(config, "qwen3", qkv_bias=bias, o_bias=bias, qk_norm=True, sliding_window=window_in_use(config))
