"""Which experiments there are and which suite each belongs to, read from the files' names alone, so that nothing needs composing."""

import re
from dataclasses import dataclass
from pathlib import Path

from llmpq.errors import ConfigError

OWN = "default"
"""The suite of an experiment that names none."""

ASKED_FOR = ("test", "quick", "vllm")
"""Suites that are no part of ``all``."""

OVERRIDDEN = (OWN, "local")
"""Suites that overrides without ``experiments=`` apply to: those that are served here."""

_KEY = re.compile(r"^suite: *([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class ExperimentFile:
    """``choice`` is the file as Hydra names it below config/experiment (``paper/paper-3-2023``)."""

    path: Path
    choice: str
    suite: str


def experiment_files(config_dir: str | Path) -> dict[str, ExperimentFile]:
    """The experiments by name: every file below config/experiment but those that start with ``_``, which others are made of.

    A file's suite is its folder; one that lies in no folder names it with the key ``suite``. Raises ConfigError naming the files for two
    of one name, for a folder in a folder, and for a key that says other than the folder.
    """
    root = Path(config_dir) / "experiment"
    found: dict[str, ExperimentFile] = {}
    for path in sorted(root.rglob("*.yaml"), key=lambda path: (path.stem, path)):
        if path.stem.startswith("_"):
            continue
        folders = path.relative_to(root).parts[:-1]
        if len(folders) > 1:
            raise ConfigError(f"{path}: experiments lie in config/experiment/SUITE, not deeper; move the file up")
        if path.stem in found:
            raise ConfigError(f"{path}: {found[path.stem].path} has that name too, and results are stored under it; rename one of them")
        key = _KEY.search(path.read_text(encoding="utf-8"))
        suite = folders[0] if folders else key[1] if key else OWN
        if key and key[1] != suite:
            raise ConfigError(f"{path}: key 'suite' is '{key[1]}', but the file lies in the folder of suite '{suite}'; leave the key out")
        found[path.stem] = ExperimentFile(path, "/".join([*folders, path.stem]), suite)
    return found


def experiment_names(config_dir: str | Path, overridden: bool = False) -> list[str]:
    """Names of all experiments; with ``overridden`` those that overrides without ``experiments=`` apply to."""
    files = experiment_files(config_dir)
    return [name for name, each in files.items() if not overridden or each.suite in OVERRIDDEN]
