"""``llmpq bench-serve``: ours beside other engines, beside the machine's limit, and as work grows."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpq.bench_serve.run import Settings

HELP = "time serving beside other engines and the machine's limit; docs/bench-serve.jsonl gathers results, docs/bench-serve.md shows them"
MODEL = "smollm2-135m-instruct"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", help="comma-separated: floor, peers, quality, curves (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="repetitions of everything that is timed (default 5)")
    parser.add_argument("--systems", help="comma-separated names as the page shows them, for peers and quality (default: all)")
    parser.add_argument("--batches", default="16,64", help="comma-separated, of peers (default 16,64)")
    parser.add_argument("--threads", default="2,1", help="comma-separated, of floor and peers (default 2,1)")
    parser.add_argument("--curves", help="comma-separated: requests, stages, prompt (default: all)")
    parser.add_argument("--again", action="store_true", help="measure what is stored already, too")
    parser.add_argument("--render-only", action="store_true", help="measure nothing, write the page from the stored results")
    parser.add_argument("--checkpoint", type=Path, default=Path(f"resources/models/{MODEL}/checkpoint"))
    parser.add_argument(
        "--quantised",
        type=Path,
        nargs="+",
        default=[Path(f"results/quantised/{MODEL}/gptq"), Path(f"results/quantised/{MODEL}/ends")],
        metavar="DIR",
        help="folders of layers and ends",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        default=[Path("resources/texts/wikipedia.txt"), Path("resources/texts/news.txt")],
        metavar="FILE",
        help="of the first come the prompts, of all the perplexity",
    )
    parser.add_argument("--results", type=Path, default=Path("docs/bench-serve.jsonl"), help="default docs/bench-serve.jsonl")
    parser.add_argument("--out", type=Path, default=Path("docs/bench-serve.md"), help="the page (default docs/bench-serve.md)")


def run(args: argparse.Namespace) -> int:
    from llmpq.bench.record import load, machine
    from llmpq.bench_serve import record
    from llmpq.bench_serve.page import FIGURE, write_figure, write_page
    from llmpq.bench_serve.run import Bench
    from llmpq.commands.bench_plan import writable
    from llmpq.model.spec import ModelSpec

    writable(args.results)
    writable(args.out)
    settings, spec = _settings(args), ModelSpec.from_directory(args.checkpoint)
    try:
        if not args.render_only:
            print(f"{machine()}, load {load()}")
            Bench(settings, say=lambda text: print(text, flush=True)).run()
    finally:  # a bench that is stopped half way has a page of what it stored
        lines = record.read(args.results)
        message = write_figure(args.out.parent / FIGURE, lines)
        write_page(args.out, lines, spec)
        print(f"{message}\n{args.out} shows the newest results of {args.results}".lstrip())
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from llmpq.bench_serve import cases
    from llmpq.bench_serve.record import PARTS
    from llmpq.bench_serve.run import Settings
    from llmpq.errors import ConfigError

    if args.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, not {args.rounds}")
    return Settings(
        parts=cases.chosen(args.part, PARTS, "part"),
        rounds=args.rounds,
        systems=cases.chosen(args.systems, [*cases.OURS, *cases.PEERS], "system"),
        batches=_numbers(args.batches, "--batches"),
        threads=_numbers(args.threads, "--threads", None if args.render_only else len(os.sched_getaffinity(0))),
        curves=cases.chosen(args.curves, list(cases.CURVES), "curve"),
        checkpoint=args.checkpoint,
        quantised=args.quantised,
        texts=args.texts,
        results=args.results,
        again=args.again,
    )


def _numbers(given: str, name: str, cores: int | None = None) -> list[int]:
    """Whole numbers of an argument; ``cores`` is what they may be at most."""
    from llmpq.errors import ConfigError

    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{name} is '{given}'; expected whole numbers separated by commas, such as 16,64")
    if cores is not None and max(map(int, parts)) > cores:
        raise ConfigError(f"{name} is '{given}'; this process may use {cores} cores")
    return [int(part) for part in parts]
