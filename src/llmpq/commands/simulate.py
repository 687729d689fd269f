"""``llmpq simulate``: how a plan would run, event by event, on the cost tables of its problem."""

import argparse
from pathlib import Path

HELP = "simulate a plan on its problem's cost tables: any requests, either schedule, with a timeline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="PROBLEM.json")
    parser.add_argument("plan", type=Path, metavar="PLAN.json")
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="WORKLOAD.json",
        help="requests with lengths of their own, each taken to generate all that it may (default: the problem's, all at their longest)",
    )
    parser.add_argument("--schedule", choices=("barrier", "continuous"), help="default: the plan's")
    parser.add_argument("--timeline", type=Path, metavar="OUT.json", help="write a Chrome trace there, for ui.perfetto.dev")


def run(args: argparse.Namespace) -> int:
    """Print times and speed, and how busy each stage would be."""
    from llmpq import artifacts, planless
    from llmpq.errors import LlmpqError
    from llmpq.simulate.predict import seconds_of, simulate_workload
    from llmpq.simulate.run import Request
    from llmpq.simulate.timeline import simulated_trace
    from llmpq.trace import trace_text

    problem, plan = artifacts.read(args.problem, "problem"), artifacts.read(args.plan, "plan")
    if (why := planless.reason(plan)) is not None:
        raise LlmpqError(f"{args.plan}: strategy {plan['strategy']} has no plan to simulate: {why}")
    if plan["problem_sha256"] != artifacts.body_digest(problem):
        raise LlmpqError(f"{args.plan}: key 'problem_sha256' is not the digest of {args.problem}; plan again")
    requests = None
    if args.requests is not None:
        rows = artifacts.read(args.requests, "workload")["requests"]
        requests = [Request(len(row["prompt_tokens"]), row["max_new_tokens"], row["max_new_tokens"]) for row in rows]
    found = simulate_workload(problem, plan, requests, schedule=args.schedule, record=args.timeline is not None)
    if args.timeline is not None:
        artifacts.write_text(args.timeline, trace_text(simulated_trace(plan["stages"], found, {"strategy": plan["strategy"]})))
    seconds = seconds_of(found)
    print(f"{len(found.tokens)} requests, {sum(found.tokens)} tokens, simulated from {problem['source']} tables")
    speed = "–" if seconds["tokens_per_s"] is None else f"{seconds['tokens_per_s']:.2f}"
    print(f"  {seconds['total_s']:.3f} s (prefill {seconds['prefill_s']:.3f} s), {speed} tokens/s")
    for rank, stage in enumerate(plan["stages"]):
        busy_ms = found.stages["prefill"][rank] + found.stages["decode"][rank]
        print(f"  stage {rank} ({stage['device']}): busy {100 * busy_ms / found.total_ms if found.total_ms else 0:.1f} % of the time")
    return 0
