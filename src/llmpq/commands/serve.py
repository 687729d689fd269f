"""``llmpq serve``: run a plan on real requests; docs/serving.md is its manual."""

import argparse
from pathlib import Path

HELP = "serve a batch of requests as a plan says, one process per stage"

OVERRIDES = (
    "address",
    "port",
    "timeout_s",
    "max_restarts",
    "margins",
    "schedule",
    "order",
    "max_new_tokens",
    "seed",
)  # of the configuration or the defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Paths of what to serve, and overrides of the experiment's settings."""
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="the plan to run")
    parser.add_argument(
        "--requests",
        type=Path,
        required=True,
        metavar="FILE",
        help="the requests: JSON lines, one request each, in llmpq's own form or as OpenAI's batch API has them; or a workload.json",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG.yaml",
        help="the experiment's resolved configuration (cluster, serve, workload, backend); without it devices have the plan's budgets "
        "and this machine's cores, and all else its default",
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
    parser.add_argument(
        "--problem",
        type=Path,
        metavar="PROBLEM.json",
        help="check that the plan was made for this problem, and simulate the run with its tables: predicted beside measured",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.jsonl|DIR",
        help="the results: a file (FILE.serve.json and FILE.timeline.json go beside it), or a folder for requests.jsonl, serve.json and "
        "timeline.json",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="serve with vLLM, on this machine's cores, from what `llmpq export PLAN.json --to vllm DIR --platform cpu` wrote (the "
        "configuration's backend vllm); needs --problem",
    )
    parser.add_argument("--order", choices=("request", "finished"), help="of the results (default: that of the requests)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="for requests that do not say (default: 256)")
    parser.add_argument("--seed", type=int, help="of sampled requests that have none, together with their ids (default: 0)")
    parser.add_argument(
        "--schedule",
        choices=("barrier", "continuous"),
        help="all prefill, then decode; or a finished request's slot goes to the next one at once (default: the "
        "configuration's, without one the plan's)",
    )
    parser.add_argument("--address", help="where the stages meet (default 127.0.0.1); another is for stages on other hosts")
    parser.add_argument("--port", type=int, help="of that address (0: any free one)")
    parser.add_argument("--timeout-s", type=float, help="seconds without an answer after which a stage counts as hung")
    parser.add_argument("--max-restarts", type=int, help="how often to start again when a stage dies")
    parser.add_argument("--margins", action="store_true", default=None, help="keep every token's top-2 margin in the results")


def run(args: argparse.Namespace) -> int:
    """Serve; prints the measured and the predicted throughput, and how many requests were refused. 0 once all others are served."""
    from functools import partial

    from llmpq.config_groups import read_groups
    from llmpq.errors import ServeError
    from llmpq.serve.batch import serve
    from llmpq.serve.job import run_settings
    from llmpq.vllm_serve.run import serve_with_vllm
    from llmpq.vllm_serve.settings import BACKEND as VLLM

    given = {key: value for key in OVERRIDES if (value := getattr(args, key)) is not None}
    cluster, settings = None, given
    if args.config is not None:
        config = read_groups(args.config, ("cluster", "serve", "workload", "backend"))
        cluster, settings = config["cluster"], run_settings(config, config["name"], **given)
    say = partial(print, flush=True)  # whoever reads a pipe sees progress too
    asked = (args.plan, args.problem, args.requests, cluster, args.checkpoint)
    if args.export is None and settings.get("backend") != VLLM:
        document = serve(*asked, args.quantised, args.out, settings, say)
    elif args.export is None or args.problem is None:
        raise ServeError("with backend vllm give --problem PROBLEM.json and --export DIR, which `llmpq export --to vllm` wrote")
    else:
        document = serve_with_vllm(*asked, args.export, args.out, settings, say=say)
    measured, predicted = (document["throughput"][key] for key in ("measured", "predicted"))
    print(f"{document['served_requests']} requests, {document['new_tokens']} tokens in {measured['total_s']:.2f} s")
    for key, what, unit in (("tokens_per_s", "throughput", "tokens/s"), ("prefill_s", "prefill", "s"), ("decode_s", "decode", "s")):
        expected = "" if predicted[key] is None else f" (predicted {predicted[key]:.2f})"
        print(f"  {what:10} {measured[key]:8.2f} {unit}{expected}")
    if document.get("refused_requests"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in document["refusals"].items())
        were = "request was" if document["refused_requests"] == 1 else "requests were"
        print(f"{document['refused_requests']} {were} refused ({reasons}); their lines in the results say why")
    return 0
