"""Fit the times of a profile."""

import argparse
from pathlib import Path

HELP = "fit a latency model to a profile and state its held-out error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", type=Path, help="the profile of a device")
    parser.add_argument("out", type=Path, help="where to write the cost model")


def run(args: argparse.Namespace) -> int:
    from llmpq.cost.latency import write_cost

    document = write_cost(args.profile, args.out)
    for row in document["fits"]:
        if row["part"] == "layer":
            error, points = 100 * row["heldout_mape"], row["points"]
            print(f"{row['phase']:8} {row['option']:14} {row['form']:6} held-out error {error:5.1f} % over {points} points")
    print(f"{args.out}: mean held-out error {100 * document['heldout_mape']:.1f} %{' (degraded)' if document['degraded'] else ''}")
    return 0
