"""llmpq report: compare the strategies of one experiment."""

import argparse
from pathlib import Path

HELP = "compare an experiment's strategies: summary.json, summary.csv, report.html, CSV of every figure, and a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT_DIR", help="for example results/experiments/duo")
    parser.add_argument("--table", action="store_true", help="print the table from the experiment's summary.json and write nothing")
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="default: every sub-folder with a plan.json, llmpq first")
    parser.add_argument("--problem", type=Path, metavar="FILE", help="default: EXPERIMENT_DIR/problem.json")
    parser.add_argument("--indicator", type=Path, metavar="FILE", help="default: the indicator that the problem was made from")
    parser.add_argument("--cost", type=Path, nargs="+", metavar="FILE", help="default: the cost files that the problem was made from")
    parser.add_argument("--predicted-only", action="store_true", help="the plans were not served: report what they predict")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: EXPERIMENT_DIR")


def run(args: argparse.Namespace) -> int:
    """Write the report (unless ``--table``), then print the table."""
    from llmpq import artifacts
    from llmpq.report.inputs import find_inputs
    from llmpq.report.terminal import show
    from llmpq.report.write import write_report

    out = args.out or args.experiment
    if args.table:
        show(artifacts.read(out / "summary.json", "summary"), out / "report.html")
        return 0
    inputs = find_inputs(args.experiment, args.problem, args.indicator, args.cost, args.strategies)
    outputs = {"summary": out / "summary.json", "table": out / "summary.csv", "page": out / "report.html", "figures": out / "figures"}
    show(write_report(args.experiment, **inputs, **outputs, served=not args.predicted_only), out / "report.html")
    return 0
