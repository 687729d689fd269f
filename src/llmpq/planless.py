"""Strategies without a plan to run: how the stages pass on that a strategy does not fit, so that an experiment goes on without it.

``plan.json`` of such a strategy has ``status`` (infeasible: nothing fits; priced: a figure for comparison that this runtime does not run)
and ``message`` in place of stages; serve.json and quality.json repeat both, and the report and MLflow show the message.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts


def reason(document: Mapping[str, Any]) -> str | None:
    """Why there is nothing to run, from a plan.json, serve.json or quality.json; None for an ordinary one."""
    return str(document["message"]) if "status" in document else None


def plan_body(problem: Mapping[str, Any], strategy: str, message: str) -> dict[str, Any]:
    """The body of plan.json for a strategy that has no plan for ``problem``."""
    return {
        "strategy": strategy,
        "problem": problem["name"],
        "problem_sha256": artifacts.body_digest(problem),
        "source": problem["source"],
        "schedule": problem["schedule"],
        "status": "infeasible",
        "message": message,
    }


def write_unserved(plan_path: str | Path, requests: str | Path, serve: str | Path, *timelines: str | Path) -> None:
    """The outputs of the serving stage for a plan.json without a plan: no requests, no calls (measured or simulated), and why."""
    artifacts.write_text(requests, "")
    for timeline in timelines:
        artifacts.write_text(timeline, artifacts.dumps({"traceEvents": []}))
    _pass_on(plan_path, serve, "serve", [plan_path])


def write_unevaluated(plan_path: str | Path, quality: str | Path) -> None:
    """quality.json for a plan.json without a plan."""
    _pass_on(plan_path, quality, "quality", [plan_path])


def _pass_on(plan_path: str | Path, out: str | Path, kind: str, inputs: Sequence[str | Path]) -> None:
    plan = artifacts.read(plan_path, "plan")
    body: dict[str, Any] = {key: plan[key] for key in ("strategy", "experiment", "status", "message") if key in plan}
    artifacts.write(out, kind, {**body, "plan_sha256": artifacts.body_digest(plan)}, source=plan["source"], inputs=inputs)
