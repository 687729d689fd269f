"""Cut the prompts of a workload from a text."""

import argparse
from pathlib import Path

HELP = "cut the requests to serve from a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", type=Path, help="the text, for example resources/texts/wikipedia.txt")
    parser.add_argument("checkpoint", type=Path, help="the prepared checkpoint, for its tokenizer")
    parser.add_argument("out", type=Path, help="where to write workload.json")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens-min", type=int, help="prompts of different lengths, this one the shortest (default: all equal)")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--new-tokens-min", type=int, help="limits of different lengths, this one the shortest (default: all equal)")
    parser.add_argument("--region", type=float, nargs=2, default=[0.3, 0.5], metavar=("FROM", "TO"), help="the part of the text to use")
    parser.add_argument("--stop-at-eos", action="store_true", help="end a request at the end-of-sequence token")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from llmpq.workload import write_workload

    settings = {key: getattr(args, key) for key in ("requests", "prompt_tokens", "new_tokens", "new_tokens_min", "region", "seed")}
    settings |= {
        "prompt_tokens_min": args.prompt_tokens_min or args.prompt_tokens,
        "text": args.text.stem,
        "ignore_eos": not args.stop_at_eos,
    }
    document = write_workload(args.out.stem, settings, args.text, args.checkpoint, args.out)
    print(f"{args.out}: {len(document['requests'])} requests")
    return 0
