"""Time the links between the devices of a cluster."""

import argparse
from pathlib import Path

HELP = "time the links between the devices of a cluster, between real processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", help="name of a cluster in config/cluster")
    parser.add_argument("out", type=Path, help="where to write the times")
    parser.add_argument("--bytes", type=int, nargs="+", default=[4096, 65536, 1048576], help="payload sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--config", type=Path, default=Path("config"), help="the configuration folder (default: config)")


def run(args: argparse.Namespace) -> int:
    from llmpq.cost.link import fit_links
    from llmpq.profile.links import profile_links

    document = profile_links(read_cluster(args.config, args.cluster), {"link_bytes": args.bytes, "repeats": args.repeats}, args.out)
    for row in fit_links(document):
        print(f"{row['from']} → {row['to']}: {row['alpha_ms']:.3f} ms + {row['bytes_per_ms'] / 1e6:.2f} GB/s")
    print(f"{args.out}: {len(document['rows'])} rows in {document['seconds']:.1f} s")
    return 0


def read_cluster(config_dir: Path, name: str) -> dict[str, object]:
    """The cluster group as an experiment that uses it composes it; ConfigError where none does."""
    from llmpq.config import compose
    from llmpq.config_suites import experiment_names
    from llmpq.errors import ConfigError

    clusters: dict[str, dict[str, object]] = {}
    served_first = dict.fromkeys([*experiment_names(config_dir, overridden=True), *experiment_names(config_dir)])
    for experiment in served_first:  # one by one: composing all of them takes seconds
        cluster = compose(config_dir, [experiment])[experiment]["cluster"]
        clusters[cluster["name"]] = cluster
        if cluster["name"] == name:
            return dict(cluster)
    raise ConfigError(f"no experiment uses a cluster '{name}'; clusters in use: {', '.join(sorted(clusters))}")
