"""Reading the configuration written beside an experiment's results, or parts of one written by hand: keys and types are checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmpq.config import Experiment
from llmpq.config_messages import one_line
from llmpq.errors import ConfigError


def read_groups(path: str | Path, groups: Sequence[str]) -> dict[str, Any]:
    """``groups`` and the name of the experiment in a resolved config.yaml, each with all its keys and of the types of llmpq.config.

    Other groups may be absent. Raises ConfigError naming file and key for YAML that cannot be read, a missing or unknown key and a wrong
    type.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {str(error).splitlines()[0]}") from None
    wanted = ("name", *groups)
    missing = [key for key in wanted if not isinstance(found, dict) or found.get(key) is None]
    if missing:
        raise ConfigError(f"{path}: key '{missing[0]}' is missing; give the config.yaml that is written beside an experiment's results")
    for key in groups:
        if not isinstance(found[key], dict):
            raise ConfigError(f"{path}: key '{key}' is {found[key]!r}, expected a group of keys")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Experiment), found)
        parts = {key: OmegaConf.select(merged, key) for key in wanted}
        return {key: OmegaConf.to_container(part, throw_on_missing=True) if key in groups else part for key, part in parts.items()}
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {one_line(error)}") from None
