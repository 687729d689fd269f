"""Collect calibration statistics."""

import argparse
from pathlib import Path

HELP = "run the unquantised model over some text and keep Hessians and input statistics of every operator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model directory, for example resources/models/NAME/checkpoint")
    parser.add_argument("text", type=Path, help="UTF-8 text, for example resources/texts/wikipedia.txt")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--region", type=float, nargs=2, default=(0.0, 0.3), metavar=("FROM", "TO"), help="fractions of the text (default: 0 0.3)"
    )
    parser.add_argument("--windows", type=int, default=16, help="stretches of text (default: 16)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens in each (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="where the windows lie and which rows are kept (default: 0)")


def run(args: argparse.Namespace) -> int:
    from llmpq.model.tokenizer import load_tokenizer
    from llmpq.quant.calibrate import calibrate
    from llmpq.text import token_windows

    tokenizer = load_tokenizer(args.checkpoint)
    windows = token_windows(tokenizer, args.text, args.region, windows=args.windows, tokens=args.tokens, seed=args.seed)
    settings = {"text": args.text.stem, "region": list(args.region), "windows": args.windows, "tokens": args.tokens, "seed": args.seed}
    calibrate(args.checkpoint, windows, args.out, settings)
    print(args.out)
    return 0
