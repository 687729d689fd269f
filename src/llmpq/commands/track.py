"""Record a finished experiment, or the stages that failed, in MLflow."""

import argparse
import sys
from pathlib import Path

HELP = "record a finished experiment in MLflow (or, with --failures, the stages that failed)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("experiment", nargs="?", type=Path, help="folder of the experiment, for example results/experiments/duo")
    what.add_argument("--failures", action="store_true", help="record what the latest run of the workflow in this folder left failed")


def run(args: argparse.Namespace) -> int:
    from llmpq import track

    if args.failures:
        for name in track.record_failures():
            print(f"llmpq: recorded as FAILED in MLflow: {name}", file=sys.stderr)
        return 0
    experiment = track.read_record(args.experiment / "config.yaml")
    document = track.track_experiment(experiment, args.experiment / "mlflow.json")
    print(f"{len(document['runs'])} runs of {experiment['name']} recorded at {document['uri']}")
    return 0
