"""``llmpq bench-backends``: one plan served by llmpq's own runtime and by vLLM in turn."""

import argparse
from pathlib import Path

HELP = "serve one plan by llmpq and by vLLM in turn; docs/bench-backends.jsonl gathers the runs, docs/bench-backends.md shows the newest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", default="pair-vllm", help="an experiment with backend=vllm that has run (default: pair-vllm)")
    parser.add_argument("--strategy", default="llmpq", help="whose plan (default: llmpq)")
    parser.add_argument("--rounds", type=int, default=3, help="of each backend (default: 3)")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page from the stored lines")
    parser.add_argument("--results", type=Path, default=Path("docs/bench-backends.jsonl"), help="default docs/bench-backends.jsonl")
    parser.add_argument("--out", type=Path, default=Path("docs/bench-backends.md"), help="the page (default docs/bench-backends.md)")


def run(args: argparse.Namespace) -> int:
    """0 once every run is stored and the page is written."""
    from functools import partial

    from llmpq.bench.record import load, machine
    from llmpq.bench_backends import record
    from llmpq.bench_backends.page import write_page
    from llmpq.bench_backends.run import Served, run_rounds
    from llmpq.commands.bench_plan import writable
    from llmpq.errors import ConfigError

    if args.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, not {args.rounds}")
    writable(args.results)
    writable(args.out)
    say = partial(print, flush=True)
    try:
        if not args.render_only:
            say(f"{machine()}, load {load()}")
            run_rounds(Served(Path("results/experiments") / args.experiment, args.strategy), args.rounds, args.results, Path("."), say)
    finally:  # a bench that is stopped half way has a page of what it stored
        write_page(args.out, record.read(args.results))
        say(f"{args.out} shows the newest sitting of {args.results}")
    return 0
