"""What the event simulation says of a plan: of one batch as the planner's formula prices it, and of requests of any lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmpq.plan.microbatch import MicroBatches
from llmpq.schedule.vllm import call_tokens
from llmpq.simulate.costs import LengthCosts, pipeline_of
from llmpq.simulate.run import Request, Simulation, simulate_requests, simulate_vllm

VLLM = "vllm"


def simulate(problem: Mapping[str, Any], plan: Mapping[str, Any]) -> Simulation:
    """One batch of ``plan`` (plan.json) under the barrier schedule, every request as long as the workload of ``problem`` (problem.json)
    says, with the costs that the formula has."""
    workload, sizes = problem["workload"], (plan["micro_batch"]["prefill"], plan["micro_batch"]["decode"])
    costs = pipeline_of(problem, plan, MicroBatches.choose(workload["slots"], *sizes))
    request = Request(workload["prompt_tokens"], workload["new_tokens"], workload["new_tokens"])
    return simulate_requests(costs, [request] * workload["slots"], schedule="barrier", slots=workload["slots"], sizes=sizes)


def simulate_workload(
    problem: Mapping[str, Any],
    plan: Mapping[str, Any],
    requests: Sequence[Request] | None = None,
    *,
    schedule: str | None = None,
    slots: int | None = None,
    record: bool = False,
) -> Simulation:
    """``requests`` (default: the workload's, all of the longest lengths) by ``schedule`` (default: the plan's), with costs by length.

    With the costs of vLLM they are batched as vLLM does, whatever the schedule.
    """
    workload = problem["workload"]
    if requests is None:
        requests = [Request(workload["prompt_tokens"], workload["new_tokens"], workload["new_tokens"])] * workload["requests"]
    slots = slots or workload["slots"]
    sizes = (min(plan["micro_batch"]["prefill"], slots), min(plan["micro_batch"]["decode"], slots))
    chosen = schedule or plan["schedule"]
    if problem.get("backend") == VLLM:
        most = call_tokens(sizes[0], workload["prompt_tokens"], slots)
        limits = {"slots": slots, "call_tokens": most, "stages": len(plan["stages"])}
        return simulate_vllm(LengthCosts(problem, plan), requests, **limits, pause_ms=problem["scheduler_ms"], record=record)
    return simulate_requests(LengthCosts(problem, plan), requests, schedule=chosen, slots=slots, sizes=sizes, record=record)


def with_simulation(problem: Mapping[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Fill in what of ``predicted`` of a plan body the simulation has to say, for all requests of the workload.

    Under the barrier that is ``simulated_total_s`` beside the formula's figures; under the continuous schedule, which no formula prices, it
    is every figure.
    """
    workload = problem["workload"]
    if plan["schedule"] == "barrier":
        seconds = simulate(problem, plan).total_ms / 1000 * (workload["requests"] // workload["slots"])
        return {**plan, "predicted": {**plan["predicted"], "simulated_total_s": seconds}}
    found = simulate_workload(problem, plan)
    return {**plan, "predicted": {**seconds_of(found), "simulated_total_s": found.total_ms / 1000}}


def seconds_of(found: Simulation) -> dict[str, float | None]:
    """A simulation as ``predicted`` of plan.json and serve.json states times and speed."""
    total_s = found.total_ms / 1000
    return {
        "prefill_s": found.prefill_ms / 1000,
        "decode_s": found.decode_ms / 1000,
        "total_s": total_s,
        "tokens_per_s": sum(found.tokens) / total_s if total_s else None,
    }
