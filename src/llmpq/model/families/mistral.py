"""Mistral: Llama's layer; a sliding window limits how long a sequence may be (ModelSpec.check_context)."""

from llmpq.model.config_file import ConfigFile
from llmpq.model.families.llama import NAMES, gated_rotary_spec
from llmpq.model.spec import ModelSpec

__all__ = ["DEFAULT_WINDOW", "NAMES", "spec"]

# What transformers takes where the key is missing; an explicit null means no window.
DEFAULT_WINDOW = 4096


def spec(config: ConfigFile) -> ModelSpec:
    return gated_rotary_spec(config, "mistral", sliding_window=config.size("sliding_window", None, missing=DEFAULT_WINDOW))
