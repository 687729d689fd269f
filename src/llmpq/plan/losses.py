"""Why each baseline loses against a plan: it does not fit, it breaks the quality budget, or it is slower, and then where."""

from collections.abc import Mapping
from typing import Any

from llmpq.plan.candidate import Assignment, build, within_budget
from llmpq.plan.known import assignment_of
from llmpq.plan.planner import TIE, baseline_plans
from llmpq.plan.problem import PHASES, Problem
from llmpq.plan.search import compared_candidates
from llmpq.plan.stage_load import stage_ms
from llmpq.plan.why_not import explain_strategy


def why_it_loses(problem: Problem, best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per baseline, against ``best`` (a plan.json body).

    ``verdict``: does_not_fit, breaks_budget, ties or loses. With a plan: its objective and what it loses in ms, in each phase and in
    damage (theta mode); the phase that costs most, its slowest stage and how long that takes beside the slowest of ``best``.
    """
    found = baseline_plans(problem, compared_candidates(problem))
    mine = assignment_of(problem, best)
    return [_loss(problem, name, plan, mine) for name, plan in found.items()]


def _loss(problem: Problem, name: str, plan: Assignment | None, mine: Assignment) -> dict[str, Any]:
    if plan is None:
        return {"strategy": name, "verdict": "does_not_fit", "message": explain_strategy(problem, name).removeprefix(f"{name}: ")}
    theirs, ours = _priced(problem, plan), _priced(problem, mine)
    lost = theirs["objective_ms"] - ours["objective_ms"]
    entry: dict[str, Any] = {
        "strategy": name,
        "verdict": "loses",
        "objective_ms": theirs["objective_ms"],
        "lost_ms": lost,
        "lost_percent": 100 * lost / ours["objective_ms"] if ours["objective_ms"] > 0 else 0.0,
        "omega_sum": theirs["omega_sum"],
        "lost_by_damage_ms": problem.theta_ms * (theirs["omega_sum"] - ours["omega_sum"]),
        **{f"lost_in_{phase}_ms": theirs[f"{phase}_ms"] - ours[f"{phase}_ms"] for phase in PHASES},
    }
    if not within_budget(problem, theirs["omega_sum"]):
        return {**entry, "verdict": "breaks_budget", "quality_budget": problem.quality_budget}
    if lost <= TIE * ours["objective_ms"]:
        return {**entry, "verdict": "ties"}
    worst = max(PHASES, key=lambda phase: float(entry[f"lost_in_{phase}_ms"]))
    return {**entry, "phase": worst, **_slowest(problem, plan, mine, worst), "unused_devices": _unused(problem, plan, mine)}


def _priced(problem: Problem, plan: Assignment) -> dict[str, float]:
    times = build(problem, plan.order, plan.batches).makespan(plan.counts(problem.options), _end(problem, plan))
    omega = plan.omega_sum(problem)
    total = times.total_ms + problem.theta_ms * omega
    return {"prefill_ms": times.prefill_ms, "decode_ms": times.decode_ms, "omega_sum": omega, "objective_ms": total}


def _end(problem: Problem, plan: Assignment) -> int:
    return build(problem, plan.order, plan.batches).end(plan.ends)


def _slowest(problem: Problem, plan: Assignment, mine: Assignment, phase: str) -> dict[str, Any]:
    """The slowest stage of ``plan`` in ``phase``, with its layers and options, beside the slowest of ``mine``."""
    times = stage_ms(problem, build(problem, plan.order, plan.batches), plan, phase)
    ours = stage_ms(problem, build(problem, mine.order, mine.batches), mine, phase)
    j = int(times.argmax())
    options = plan.stages[j]
    return {
        "stage": j,
        "device": problem.devices[plan.order[j]].name,
        "stage_options": {option: options.count(option) for option in dict.fromkeys(options)},
        "stage_ms": float(times[j]),
        "best_stage_ms": float(ours.max()),
        "idle_share": float(1 - times.sum() / (times.max() * len(times))) if times.max() > 0 else 0.0,
        "micro_batch": [plan.batches.xi, plan.batches.eta],
        "best_micro_batch": [mine.batches.xi, mine.batches.eta],
    }


def _unused(problem: Problem, plan: Assignment, mine: Assignment) -> list[str]:
    """Devices that ``mine`` uses and ``plan`` does not."""
    return [problem.devices[index].name for index in mine.order if index not in plan.order]
