"""What the Snakefile asks for: the chosen experiments, composed once for each change of the configuration."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.config import compose
from llmpq.config_suites import experiment_names
from llmpq.errors import ConfigError


def load_experiments(config_dir: str | Path, settings: Mapping[str, Any], cache_dir: str | Path) -> dict[str, dict[str, Any]]:
    """What ``snakemake --config experiments=a,b overrides='["key=value"]'`` asks for, composed; the default is every experiment.

    Composing takes seconds where there are many, so the result is kept in ``cache_dir``, where that can be written, under a hash of all
    that it depends on.
    """
    unknown = sorted(set(settings) - {"experiments", "overrides"})
    if unknown:
        example = "overrides='[\"workload.new_tokens=64\"]'"
        raise ConfigError(f"unknown key '{unknown[0]}' in --config; known: experiments, overrides (for example {example})")
    overrides = as_list(settings.get("overrides"), "overrides")
    names = as_list(settings.get("experiments"), "experiments") or experiment_names(config_dir, overridden=bool(overrides))
    files = sorted([*Path(config_dir).rglob("*.yaml"), *Path(__file__).parent.glob("config*.py")])
    state = hashlib.sha256(json.dumps([names, overrides]).encode())
    for file in files:
        state.update(f"{file}\0".encode() + file.read_bytes())
    cached = Path(cache_dir) / f"config-{state.hexdigest()[:16]}.json"
    if cached.is_file():
        found: dict[str, dict[str, Any]] = json.loads(cached.read_text(encoding="utf-8"))
        return found
    composed = compose(config_dir, names, overrides)
    with contextlib.suppress(OSError):
        artifacts.write_text(cached, json.dumps(composed))
    return composed


def as_list(value: Any, key: str) -> list[str]:
    """A list, or a string such as ``a,b`` or ``["a=1","b=[2,3]"]``, as a list of strings."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        if value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ConfigError(f"--config {key}={value}: not a JSON list of strings ({error})") from None
        else:
            value = [part.strip() for part in value.split(",")] if key == "experiments" else [value]
    if not isinstance(value, list) or not all(isinstance(part, str) and part for part in value):
        raise ConfigError(f"--config {key}: expected a list of strings, found {value!r}")
    return value
