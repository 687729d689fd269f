"""One file per model family, found by its name: to add one, add a file (docs/families.md).

A family is a module called as config.json's ``model_type`` with two things: ``spec(config)``, config.json → ModelSpec, and ``NAMES``, what
its checkpoints call their tensors.
"""

import importlib
import pkgutil
from types import ModuleType

from llmpq.model.config_file import ConfigFile, ModelError


def families() -> list[str]:
    """The ``model_type`` of every family there is a file for, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family_of(config: ConfigFile) -> ModuleType:
    """The family module for ``model_type``; ModelError naming those there are."""
    name = config.text("model_type")
    if name not in families():
        raise ModelError(f"{config.path}: model_type '{name}' is not supported; known families: {', '.join(families())}")
    return importlib.import_module(f"{__name__}.{name}")
