"""``llmpq catalogue``: write the planning problem of a cluster that is not here, from data sheets."""

import argparse
from pathlib import Path

HELP = "write problem.json for a row of config/paper.yaml from data sheets and stated kernel efficiencies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llmpq.commands.plan import add_objective_arguments

    parser.add_argument("row", help="name of a row in config/paper.yaml, for example paper-5 or paper-4-lat")
    parser.add_argument("--generation", default="2023", help="kernels: 2023 (default; slow 3 and 4 bit in prefill) or today")
    parser.add_argument("--out", type=Path, required=True, metavar="PROBLEM.json")
    parser.add_argument("--config", type=Path, default=Path("config"), help="the configuration folder (default: config)")
    add_objective_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from llmpq.commands.plan import objective_argument
    from llmpq.cost.paper import write_paper_problem

    document = write_paper_problem(args.out, args.config, args.row, args.generation, objective_argument(args))
    print(f"{args.out}: {document['model']['layers']} layers, {len(document['devices'])} devices, options {', '.join(document['options'])}")
    return 0
