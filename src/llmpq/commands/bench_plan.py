"""``llmpq bench-plan``: how long planning takes, on the paper's clusters."""

import argparse
from pathlib import Path

HELP = "time the planner on the paper's clusters (catalogue costs), print a table and write docs/bench-plan.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows",
        help="comma-separated rows of config/paper.yaml, or sizes such as 96x16-4 (default: 3 to 11 and three -lat rows)",
    )
    parser.add_argument("--modes", default="theta,budget 0.1,budget 0.5,budget 1", help="comma-separated (default: all four)")
    parser.add_argument("--solvers", default="highs,glpk", help="comma-separated (default: highs,glpk)")
    parser.add_argument("--generation", default="2023", help="kernels: 2023 (default) or today")
    parser.add_argument("--time-limit", type=float, default=30.0, metavar="SECONDS", help="of one plan (default 30)")
    parser.add_argument("--gap", type=float, default=1e-3, help="relative gap to prove (default 1e-3)")
    parser.add_argument("--config", type=Path, default=Path("config"))
    parser.add_argument("--out", type=Path, help="the page to write, for example docs/bench-plan.md (default: none)")
    parser.add_argument("--json", type=Path, help="append one JSON line per result to this file")


def run(args: argparse.Namespace) -> int:
    from llmpq.bench.page import machine, summary, write_page
    from llmpq.bench.planning import MODES, ROWS, append_json, bench
    from llmpq.errors import ConfigError

    rows = args.rows.split(",") if args.rows else list(ROWS)
    modes, solvers = args.modes.split(","), args.solvers.split(",")
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"unknown mode '{mode}'; modes are {', '.join(MODES)}")
    before = machine()
    print(before)
    results = bench(args.config, rows, modes, solvers, args.generation, args.time_limit, args.gap)
    print("\n".join(summary(results, args.gap)))
    if args.json:
        append_json(args.json, results)
    if args.out:
        settings = f"kernels '{args.generation}', time limit {args.time_limit:g} s, gap {100 * args.gap:g} %"
        write_page(args.out, results, settings, before, args.gap)
    return 0
