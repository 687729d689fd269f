"""Write the planning problem of an experiment from its artifacts."""

import argparse
from pathlib import Path

HELP = "bring cost tables, links, indicator and memory of an experiment together in problem.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="name of an experiment in config/experiment")
    parser.add_argument("out", type=Path, help="where to write problem.json")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override of a configuration key")
    parser.add_argument("--config", type=Path, default=Path("config"), help="the configuration folder (default: config)")
    parser.add_argument("--resources", type=Path, default=Path("resources"))
    parser.add_argument("--results", type=Path, default=Path("results"))


def run(args: argparse.Namespace) -> int:
    from llmpq.config import compose
    from llmpq.cost.problem import write_problem
    from llmpq.export.choice import choice_for

    chosen = compose(args.config, [args.experiment], args.overrides)[args.experiment]
    model, profile, cluster = chosen["model"]["name"], chosen["profile"]["name"], chosen["cluster"]
    devices = sorted({member["device"] for member in cluster["members"]})
    paths = {
        "model": args.resources / "models" / model / "model.json",
        "links": args.results / "links" / profile / f"{cluster['name']}.json",
        "indicator": args.results / "indicators" / model / chosen["quantizer"]["name"] / f"{chosen['indicator']['name']}.json",
        "costs": {device: args.results / "cost" / profile / model / f"{device}.json" for device in devices},
    }
    offered = (chosen["quantizer"]["options"], chosen["model"]["end_options"], chosen["model"]["kv_options"])
    choice = choice_for(chosen["backend"]["plan_for"], *offered)
    document = write_problem(
        args.out,
        paths,
        name=args.experiment,
        cluster=cluster,
        workload=chosen["workload"],
        planner=chosen["planner"],
        options=choice.options,
        schedule=chosen["serve"]["schedule"],
        end_options=choice.end_options,
        kv_options=choice.kv_options,
        notes=choice.notes,
    )
    print(f"{args.out}: {len(document['devices'])} devices, options {', '.join(document['options'])}")
    if "description" in document:
        print(document["description"])
    return 0
