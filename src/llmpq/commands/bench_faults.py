"""``llmpq bench-faults``: kills and other faults done to real runs, and what became of every request."""

import argparse
import signal
import sys
from pathlib import Path

HELP = "do faults to serving runs; docs/bench-faults.jsonl gathers what became of their requests, docs/bench-faults.md shows the newest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faults", help="comma-separated names as the page shows them (default: all)")
    parser.add_argument("--schedules", help="comma-separated: barrier, continuous (default: both)")
    parser.add_argument("--runs", type=int, metavar="N", help="of each fault and schedule (default: 24 with kills, 3 or 4 of the others)")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead: one run of 10,000 requests that lasts so long, with kills")
    parser.add_argument("--seed", type=int, default=0, help="of the soak (default 0)")
    parser.add_argument("--again", action="store_true", help="run what is stored already, too")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page from the stored lines")
    parser.add_argument("--results", type=Path, default=Path("docs/bench-faults.jsonl"), help="default docs/bench-faults.jsonl")
    parser.add_argument("--out", type=Path, default=Path("docs/bench-faults.md"), help="the page (default docs/bench-faults.md)")
    parser.add_argument("--work", type=Path, default=Path("build/bench-faults"), help="for the runs' files (default build/bench-faults)")


def run(args: argparse.Namespace) -> int:
    """0 when all went as it should and nothing was lost, duplicated or wrong; else 1."""
    from llmpq.bench.record import load, machine
    from llmpq.bench_faults import record
    from llmpq.bench_faults.faults import FAULTS
    from llmpq.bench_faults.page import write_page
    from llmpq.bench_faults.run import SCHEDULES, Bench, Settings
    from llmpq.bench_faults.soak import soak
    from llmpq.bench_serve.cases import chosen
    from llmpq.commands.bench_plan import writable
    from llmpq.errors import ConfigError

    for name, value in (("--runs", args.runs), ("--soak", args.soak)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be more than 0, not {value:g}")
    writable(args.results)
    writable(args.out)
    faults, schedules = chosen(args.faults, list(FAULTS), "fault"), chosen(args.schedules, SCHEDULES, "schedule")
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what is running ends with the bench

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        if args.soak is not None and not args.render_only:
            for schedule in schedules:
                found.append(soak(args.soak, schedule, args.seed, args.work, say))
                record.append(args.results, found[-1])
        elif not args.render_only:
            say(f"{machine()}, load {load()}")
            settings = Settings(args.results, faults, schedules, args.runs, args.work, args.again)
            found = Bench(settings, say).run()
    finally:  # a bench that is stopped half way has a page of what it stored
        write_page(args.out, record.read(args.results))
        print(f"{args.out} shows the newest results of {args.results}")
        signal.signal(signal.SIGTERM, before)
    return int(any(line.status != record.OK or line.lost or line.duplicated or line.wrong for line in found))
