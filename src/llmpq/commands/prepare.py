"""Fetch a model and convert it once, or fetch a text."""

import argparse
from pathlib import Path
from typing import Any

from llmpq.config_evaluate import TEXTS
from llmpq.errors import ConfigError

HELP = "fetch a model of config/model and convert it once, or fetch a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="an entry of config/model, for example smollm2-135m-instruct")
    what.add_argument("--text", metavar="NAME", help=", ".join(TEXTS))
    parser.add_argument("--source", default="", metavar="FILE", help="with --text: a local copy of the file of wikitext2, ptb or c4")
    parser.add_argument("--out", type=Path, help="where to (default: resources/models/NAME, or resources/texts/NAME.txt)")


def run(args: argparse.Namespace) -> int:
    if args.text is not None:
        from llmpq.text import prepare_text

        print(prepare_text(args.text, args.out or Path("resources/texts") / f"{args.text}.txt", args.source))
        return 0
    if args.source:
        raise ConfigError("--source goes with --text; where a model comes from stands in its file of config/model")
    from llmpq.model.prepare import prepare_model

    print(prepare_model(_entry(args.model), args.out or Path("resources/models") / args.model))
    return 0


def _entry(name: str) -> dict[str, Any]:
    """One file of config/model; the workflow composes and checks it with everything else, here it stands alone."""
    import yaml

    path = Path("config/model") / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none: run this in the repository's top folder"
        raise ConfigError(f"{path}: no such model; known models: {known}")
    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: expected keys and values (see config/README.md)")
    return entry
