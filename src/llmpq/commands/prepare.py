"""Fetch a model and convert it once, or fetch a text."""

import argparse
from pathlib import Path

HELP = "fetch a model of config/model and convert it once, or fetch a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="an entry of config/model, for example smollm2-135m-instruct")
    what.add_argument("--text", metavar="NAME", help="wikipedia or python-docs")
    parser.add_argument("--out", type=Path, help="where to (default: resources/models/NAME, or resources/texts/NAME.txt)")


def run(args: argparse.Namespace) -> int:
    if args.text is not None:
        from llmpq.text import prepare_text

        print(prepare_text(args.text, args.out or Path("resources/texts") / f"{args.text}.txt"))
        return 0
    from llmpq.config import load_entry
    from llmpq.model.prepare import prepare_model

    print(prepare_model(load_entry("model", args.model), args.out or Path("resources/models") / args.model))
    return 0
