"""The simulation stage: plans that cannot be run here, run event by event on the cost tables of their problem."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ArtifactError
from llmpq.plan.microbatch import MicroBatches
from llmpq.simulate.costs import pipeline_of
from llmpq.simulate.predict import seconds_of
from llmpq.simulate.run import Request, Simulation, simulate_requests
from llmpq.simulate.timeline import simulated_trace
from llmpq.trace import trace_text

MOST_EVENTS = 3000
"""Calls and messages that the timeline keeps, from the first on: the whole prefill and some rounds of decode of a batch of 32."""


def write_simulation(
    problem_path: str | Path, plan_paths: Sequence[str | Path], out: str | Path, timeline: str | Path, experiment: str | None = None
) -> dict[str, Any]:
    """Simulate every request of the problem's workload by each plan under the barrier schedule; returns the document written.

    Writes simulation.json and the Chrome trace of the first plan that there is. Raises ArtifactError for a plan of another problem.
    """
    problem = artifacts.read(problem_path, "problem")
    runs: list[dict[str, Any]] = []
    trace: dict[str, Any] = {"traceEvents": []}
    for path in plan_paths:
        plan = artifacts.read(path, "plan")
        if plan["problem_sha256"] != artifacts.body_digest(problem):
            raise ArtifactError(f"{path}: key 'problem_sha256' is not the digest of {problem_path}; delete it and plan again")
        run = {"strategy": plan["strategy"], "plan_sha256": artifacts.body_digest(plan)}
        if planless.reason(plan) is not None:
            runs.append(run | {key: plan[key] for key in ("status", "message")})
            continue
        found = simulate_batches(problem, plan)
        runs.append(run | _figures(plan, found))
        if not trace["traceEvents"]:
            trace = simulated_trace(plan["stages"], _first_events(found), {"strategy": plan["strategy"], "events": found.event_count})
    body = {"source": "simulated", "tables": problem["source"], "schedule": "barrier", "problem_sha256": artifacts.body_digest(problem)}
    body |= {"experiment": experiment} if experiment is not None else {}
    artifacts.write_text(timeline, trace_text(trace))
    return artifacts.write(out, "simulation", {**body, "runs": runs}, source="simulated", inputs=[problem_path, *plan_paths])


def simulate_batches(problem: Mapping[str, Any], plan: Mapping[str, Any]) -> Simulation:
    """All batches of the workload one after the other, with the costs that the planner's formula has; events are recorded."""
    workload, sizes = problem["workload"], (plan["micro_batch"]["prefill"], plan["micro_batch"]["decode"])
    costs = pipeline_of(problem, plan, MicroBatches.choose(workload["slots"], *sizes))
    request = Request(workload["prompt_tokens"], workload["new_tokens"], workload["new_tokens"])
    requests = [request] * workload["requests"]
    return simulate_requests(costs, requests, schedule="barrier", slots=workload["slots"], sizes=sizes, record=True)


def _figures(plan: Mapping[str, Any], found: Simulation) -> dict[str, Any]:
    return {
        "requests": len(found.tokens),
        "new_tokens": sum(found.tokens),
        **seconds_of(found),
        "stages": [
            {"device": stage["device"], **{f"{phase}_s": found.stages[phase][rank] / 1000 for phase in ("prefill", "decode")}}
            for rank, stage in enumerate(plan["stages"])
        ],
    }


def _first_events(found: Simulation) -> Simulation:
    events = sorted(found.events, key=lambda event: event.start_ms)[:MOST_EVENTS]
    return Simulation(**{**vars(found), "events": events})
