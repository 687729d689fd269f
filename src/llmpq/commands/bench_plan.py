"""``llmpq bench-plan``: how long planning takes, on the paper's clusters and on larger ones."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpq.bench.run import Settings

HELP = "time the planner on catalogue clusters; results accumulate in docs/bench-plan.jsonl, docs/bench-plan.md shows the newest"
KIND_MODES = {"plan": "theta,budget 0.1,budget 0.5,budget 1", "transfer": "theta,budget 0.1,budget 0.5,budget 1", "textbook": "theta"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        choices=list(KIND_MODES),
        default="plan",
        help="the search (default), the textbook form of candidates drawn at random, or llmpq-transfer",
    )
    parser.add_argument(
        "--rows",
        help="comma-separated: rows of config/paper.yaml, sizes such as 96x16-4 (layers × devices - types), or paper (default: 3 to 11 "
        "and three -lat rows), curve, large",
    )
    parser.add_argument("--modes", help="comma-separated (default: all four; textbook: theta)")
    parser.add_argument("--solvers", default="highs,glpk", help="comma-separated (default: highs,glpk)")
    parser.add_argument("--generation", default="2023", help="kernels: 2023 (default) or today")
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="of one plan (default: highs 30, glpk 90 and on clusters 7 and 8 120; 96x16-4 300, 126x32-3 600; textbook 60)",
    )
    parser.add_argument("--gap", type=float, default=1e-3, help="relative gap to prove (default 1e-3)")
    parser.add_argument("--draws", type=int, default=20, metavar="N", help="textbook: candidates per cluster (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="textbook: of the draw")
    parser.add_argument("--again", action="store_true", help="measure what is stored already, too")
    parser.add_argument("--render-only", action="store_true", help="measure nothing, write the page from the stored results")
    parser.add_argument("--config", type=Path, default=Path("config"))
    parser.add_argument("--results", type=Path, default=Path("docs/bench-plan.jsonl"), help="default docs/bench-plan.jsonl")
    parser.add_argument("--out", type=Path, default=Path("docs/bench-plan.md"), help="the page (default docs/bench-plan.md)")


def run(args: argparse.Namespace) -> int:
    from llmpq.bench import record
    from llmpq.bench.curve import write_figure
    from llmpq.bench.page import FIGURE, write_page
    from llmpq.bench.run import measure

    writable(args.results)
    writable(args.out)
    settings = _settings(args)
    try:
        if not args.render_only:
            print(f"{record.machine()}, load {record.load()}")
            measure(args.config, settings, args.results)
    finally:  # a bench that is stopped half way has a page of what it stored
        newest = record.newest(record.read(args.results))
        message = write_figure(args.out.parent / FIGURE, newest)
        write_page(args.out, newest)
        print(f"{message}\n{args.out} shows the newest results of {args.results}".lstrip())
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from llmpq.bench.cases import MODES, rows_of
    from llmpq.bench.run import Settings
    from llmpq.errors import ConfigError
    from llmpq.plan.solve import SOLVERS

    modes, solvers = (args.modes or KIND_MODES[args.kind]).split(","), args.solvers.split(",")
    for name, chosen, known in (("mode", modes, list(MODES)), ("solver", solvers, list(SOLVERS))):
        for one in chosen:
            if one not in known:
                raise ConfigError(f"unknown {name} '{one}'; {name}s are {', '.join(known)}")
    if args.draws < 1:
        raise ConfigError(f"--draws must be at least 1, not {args.draws}")
    return Settings(
        kind=args.kind,
        rows=rows_of(args.rows),
        modes=modes,
        solvers=solvers,
        generation=args.generation,
        time_limit_s=args.time_limit,
        gap=args.gap,
        draws=args.draws,
        seed=args.seed,
        again=args.again,
    )


def writable(path: Path) -> None:
    from llmpq.errors import ConfigError

    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder {path.parent}; run it in the project's folder, or name --results and --out")
