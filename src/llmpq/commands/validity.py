"""``llmpq validity``: what a finished study of the indicators says."""

import argparse
from pathlib import Path

HELP = "print what a study of the indicators found (the rule validity makes it)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY.json", help="for example results/validity/default.json")


def run(args: argparse.Namespace) -> int:
    from llmpq import artifacts
    from llmpq.validity.page import terminal

    print(terminal(artifacts.read(args.study, "validity")))
    return 0
