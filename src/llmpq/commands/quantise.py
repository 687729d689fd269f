"""Quantise a group of layers."""

import argparse
from pathlib import Path

HELP = "quantise some layers at several options: one file per layer and option, and a manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model directory, for example resources/models/NAME/checkpoint")
    parser.add_argument("calibration", type=Path, help="file written by llmpq calibrate")
    parser.add_argument("out", type=Path, help="directory of the group, for example results/quantised/NAME/gptq/layers-000-014")
    parser.add_argument("--layers", type=int, nargs=2, required=True, metavar=("FIRST", "LAST"), help="both included")
    parser.add_argument(
        "--options", default="16,8,w8a8-outlier,w8a8,4,3", help="weight options, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--method", choices=("gptq", "rtn", "auto-gptq"), default="gptq", help="quantiser (default: gptq)")
    parser.add_argument("--damping", type=float, default=0.01, help="GPTQ: share of the mean of the Hessian's diagonal (default: 0.01)")
    parser.add_argument("--act-order", action="store_true", help="GPTQ: columns in order of falling Hessian diagonal")
    parser.add_argument("--static-groups", action="store_true", help="GPTQ: all groups' scales before any column is rounded")


def run(args: argparse.Namespace) -> int:
    from llmpq.quant.quantise import quantise_group

    settings = {"method": args.method, "damping": args.damping, "act_order": args.act_order, "static_groups": args.static_groups}
    first, last = args.layers
    options = [name.strip() for name in args.options.split(",") if name.strip()]
    quantise_group(args.checkpoint, args.calibration, args.out, first=first, last=last, options=options, settings=settings)
    print(args.out / "manifest.json")
    return 0
