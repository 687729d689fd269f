"""Qwen2 and Qwen2.5: Llama's layer with biases on q, k and v; the sliding window only where the configuration switches it on."""

from llmpq.model.config_file import ConfigFile
from llmpq.model.families.llama import NAMES, gated_rotary_spec
from llmpq.model.spec import ModelSpec

__all__ = ["DEFAULT_WINDOW", "NAMES", "spec", "window_in_use"]

# What transformers takes where the key is missing; an explicit null means no window.
DEFAULT_WINDOW = 4096


def spec(config: ConfigFile) -> ModelSpec:
    return gated_rotary_spec(config, "qwen2", qkv_bias=True, sliding_window=window_in_use(config))


def window_in_use(config: ConfigFile) -> int | None:
    """Qwen configurations name a window even where ``use_sliding_window`` is off."""
    return config.size("sliding_window", None, missing=DEFAULT_WINDOW) if config.flag("use_sliding_window", False) else None
