"""Quantise embedding and head."""

import argparse
from pathlib import Path

HELP = "quantise embedding and head: one file per end and option, and a manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model directory, for example resources/models/NAME/checkpoint")
    parser.add_argument("out", type=Path, help="directory of the files, for example results/quantised/NAME/ends")
    parser.add_argument("--options", default="8,w8a8", help="weight options, separated by commas (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from llmpq.quant.ends import quantise_ends

    quantise_ends(args.checkpoint, args.out, options=[name.strip() for name in args.options.split(",") if name.strip()])
    print(args.out / "manifest.json")
    return 0
