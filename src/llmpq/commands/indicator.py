"""Score the options of every layer."""

import argparse
from pathlib import Path

HELP = "score how much damage every option does to every layer; uniform 4 bit sums to 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model directory, for example resources/models/NAME/checkpoint")
    parser.add_argument("calibration", type=Path, help="file written by llmpq calibrate")
    parser.add_argument("quantised", type=Path, nargs="+", help="directories of the quantised groups, together all layers")
    parser.add_argument("--out", type=Path, required=True, help="the .json file to write")
    parser.add_argument(
        "--method",
        default="residual-error",
        help="residual-error (default), variance, gptq-loss, hessian, gradient, divergence or random",
    )
    parser.add_argument("--rounding", choices=("deterministic", "stochastic"), default="deterministic", help="variance: rounding assumed")
    parser.add_argument("--moment", choices=("variance", "second"), default="variance", help="variance: moment of the inputs")
    parser.add_argument("--seed", type=int, default=0, help="random: which draw (default: %(default)s)")
    parser.add_argument(
        "--options",
        default="16,8,w8a8-outlier,w8a8,4,3",
        help="options, separated by commas; 4/kv8 is 4 with an 8-bit cache (default: %(default)s)",
    )
    parser.add_argument("--ends", type=Path, metavar="DIR", help="directory of the quantised embedding and head")
    parser.add_argument("--end-options", help="options of embedding and head, separated by commas (default: 16; with --ends 16,8,w8a8)")
    parser.add_argument("--model", default="model", help="name to record (default: %(default)s)")
    parser.add_argument("--quantizer", default="gptq", help="name of the quantizer entry to record (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from llmpq.indicator.table import write_indicator

    write_indicator(
        args.out,
        checkpoint_dir=args.checkpoint,
        calibration_file=args.calibration,
        quantised_dirs=args.quantised,
        model=args.model,
        quantizer=args.quantizer,
        indicator={"name": args.method, "method": args.method, "rounding": args.rounding, "moment": args.moment, "seed": args.seed},
        options=_names(args.options),
        ends_dir=args.ends,
        end_options=_names(args.end_options or ("16,8,w8a8" if args.ends else "16")),
    )
    print(args.out)
    return 0


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
