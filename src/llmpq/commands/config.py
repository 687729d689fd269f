"""Show the resolved configuration of an experiment."""

import argparse
from pathlib import Path

HELP = "show the resolved configuration of an experiment, or list the experiments"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", help="a file of config/experiment, without .yaml (default: list them)")
    parser.add_argument("override", nargs="*", help="key=value, for example workload.new_tokens=64")
    parser.add_argument("--config-dir", type=Path, default=Path("config"))


def run(args: argparse.Namespace) -> int:
    import yaml

    from llmpq.config import compose
    from llmpq.config_suites import experiment_names
    from llmpq.errors import ConfigError

    if not (args.config_dir / "config.yaml").is_file():
        raise ConfigError(f"{args.config_dir}/config.yaml: no such file; run this in the repository's top folder, or give --config-dir")
    if args.experiment is None:
        for name in experiment_names(args.config_dir):
            print(name)
        return 0
    composed = compose(args.config_dir, [args.experiment], args.override)
    print(yaml.safe_dump(composed[args.experiment], sort_keys=False, default_flow_style=None, width=120), end="")
    return 0
