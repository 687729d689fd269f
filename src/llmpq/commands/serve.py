"""``llmpq serve``: run a plan on real requests."""

import argparse
from pathlib import Path

HELP = "serve a batch of requests as a plan says, one process per stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Paths of what to serve, and overrides of the experiment's settings."""
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="the plan to run")
    parser.add_argument("--requests", type=Path, required=True, metavar="WORKLOAD.json", help="the requests to serve")
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="CONFIG.yaml",
        help="the experiment's resolved configuration (cluster, serve, workload, backend)",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="checkpoint directory of the model")
    parser.add_argument(
        "--quantised",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of layers and ends (for example results/quantised/NAME/gptq results/quantised/NAME/ends); without them options "
        "16 and 32 are read from the checkpoint",
    )
    parser.add_argument("--problem", type=Path, metavar="PROBLEM.json", help="check that the plan was made for this problem")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where requests.jsonl, serve.json and timeline.json go")
    parser.add_argument(
        "--schedule",
        choices=("barrier", "continuous"),
        help="all prefill, then decode; or a finished request's slot goes to the next one at once (default: the configuration's)",
    )
    parser.add_argument("--port", type=int, help="rendezvous port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--timeout-s", type=float, help="seconds without an answer after which a stage counts as hung")
    parser.add_argument("--max-restarts", type=int, help="how often to start again when a stage dies")
    parser.add_argument("--margins", action="store_true", default=None, help="keep every token's top-2 margin in requests.jsonl")


def run(args: argparse.Namespace) -> int:
    """Serve; prints the measured and the predicted throughput."""
    from llmpq.config_groups import read_groups
    from llmpq.serve.batch import serve
    from llmpq.serve.job import run_settings

    config = read_groups(args.config, ("cluster", "serve", "workload", "backend"))
    overrides = {key: getattr(args, key) for key in ("port", "timeout_s", "max_restarts", "margins", "schedule")}
    settings = run_settings(config, config["name"], **{key: value for key, value in overrides.items() if value is not None})
    document = serve(args.plan, args.problem, args.requests, config["cluster"], args.checkpoint, args.quantised, args.out, settings)
    measured, predicted = (document["throughput"][key] for key in ("measured", "predicted"))
    print(f"{document['served_requests']} requests, {document['new_tokens']} tokens in {measured['total_s']:.2f} s")
    for key, what, unit in (("tokens_per_s", "throughput", "tokens/s"), ("prefill_s", "prefill", "s"), ("decode_s", "decode", "s")):
        expected = "" if predicted[key] is None else f" (predicted {predicted[key]:.2f})"
        print(f"  {what:10} {measured[key]:8.2f} {unit}{expected}")
    return 0
