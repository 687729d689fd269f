"""One file per model family: config.json → ModelSpec, and tensor names → canonical ones. To add one: a file and a line here."""

from collections.abc import Mapping
from types import ModuleType

from llmpq.model.config_file import ConfigFile, ModelError
from llmpq.model.families import bloom, llama, mistral, opt, qwen2, qwen3

FAMILIES: Mapping[str, ModuleType] = {"bloom": bloom, "llama": llama, "mistral": mistral, "opt": opt, "qwen2": qwen2, "qwen3": qwen3}


def family_of(config: ConfigFile) -> ModuleType:
    """The family module for ``model_type``; it offers spec(config), PREFIXES, and layer / embedding / head(tensors, spec[, i])."""
    name = config.text("model_type")
    if name not in FAMILIES:
        raise ModelError(f"{config.path}: model_type '{name}' is not supported; known families: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
