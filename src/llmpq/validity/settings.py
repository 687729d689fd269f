"""Studies as config/validity.yaml writes them, checked: one error that names study and key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmpq.errors import ConfigError

PLAIN = "16"
"""The yardstick: every layer at 16 bits."""

NEEDED = {"options": (PLAIN, "3", "4", "8"), "choices": ("3", "4", "8")}
"""Options that the comparisons are made of."""

_KEYS: dict[str, type] = {
    "model": str,
    "quantizer": str,
    "indicators": list,
    "indicator": str,
    "options": list,
    "choices": list,
    "texts": list,
    "widths": list,
    "assignments": int,
    "pairs": int,
    "stability": list,
    "seed": int,
    "rank": dict,
    "compare": dict,
}
_CUT: dict[str, type] = {"region": list, "windows": int, "tokens": int}


def read_studies(path: str | Path) -> dict[str, dict[str, Any]]:
    """Every study of the file by its name."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        studies = {str(name): dict(settings) for name, settings in found["studies"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: expected 'studies:' with a group of keys for each study ({error})") from None
    for name, settings in studies.items():
        check_study(settings, f"{path}: study '{name}'")
    return studies


def check_study(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError, beginning with ``where``, at the first key that cannot be meant."""
    _check_keys(settings, _KEYS, where, "")
    for part in ("rank", "compare"):
        _check_keys(settings[part], _CUT, where, f"{part}.")
        region = settings[part]["region"]
        if len(region) != 2 or not 0 <= float(region[0]) < float(region[1]) <= 1:
            raise ConfigError(f"{where}: key '{part}.region' is {region}, expected two shares of the text, 0 ≤ from < to ≤ 1")
    if settings["rank"]["region"][1] > settings["compare"]["region"][0]:
        raise ConfigError(f"{where}: key 'compare.region' must begin where 'rank.region' ends: it is text that chose no indicator")
    if settings["indicator"] not in settings["indicators"]:
        raise ConfigError(f"{where}: key 'indicator' is '{settings['indicator']}', which is none of 'indicators'")
    if settings["quantizer"] in settings["stability"] or len(set(settings["stability"])) < len(settings["stability"]):
        raise ConfigError(f"{where}: key 'stability' is {settings['stability']}, expected each of the other quantizers once")
    for key, needed in NEEDED.items():
        for option in needed:
            if option not in settings[key]:
                raise ConfigError(f"{where}: key '{key}' lacks '{option}', which the comparisons need")


def _check_keys(given: Mapping[str, Any], kinds: Mapping[str, type], where: str, prefix: str) -> None:
    for key in given.keys() - kinds.keys():
        raise ConfigError(f"{where}: unknown key '{prefix}{key}'; known: {', '.join(kinds)}")
    for key, kind in kinds.items():
        if key not in given:
            raise ConfigError(f"{where}: key '{prefix}{key}' is missing")
        if not isinstance(given[key], kind) or isinstance(given[key], bool):
            raise ConfigError(f"{where}: key '{prefix}{key}' is {given[key]!r}, expected {kind.__name__}")
        if given[key] in ([], "") or (kind is int and key != "seed" and given[key] < 1):
            raise ConfigError(f"{where}: key '{prefix}{key}' is {given[key]!r}, expected something in it")
