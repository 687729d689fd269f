"""Why a plan is as it is: what binds on each stage, what a little more of anything would buy, and why each baseline loses.

Gains are never guessed: the problem is changed and planned again by the same search, which starts from the plan that is known. A gain
lies between two figures, as every certificate has a gap: the plan found gains ``gain_ms``, and no plan could gain more than
``gain_at_most_ms``.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import InfeasibleError, LlmpqError
from llmpq.plan.changes import Change, changes
from llmpq.plan.explain_words import baseline_sentence, change_sentence, head_sentences, stage_sentence
from llmpq.plan.known import assignment_of
from llmpq.plan.losses import why_it_loses
from llmpq.plan.planner import plan_from
from llmpq.plan.problem import Problem
from llmpq.plan.stage_load import stage_loads

Document = dict[str, Any]


def explain(
    problem: Mapping[str, Any],
    plan: Mapping[str, Any] | None,
    *,
    solver: str = "glpk",
    time_limit: float = 30.0,
    gap: float = 1e-4,
    seed: int = 0,
    path: str = "problem",
) -> Document:
    """The body of explain.json for ``plan`` (plan.json, of any strategy) on ``problem`` (problem.json).

    ``time_limit`` in seconds, ``gap`` and ``seed`` are those of each search; there is one for the problem itself and one per change.
    Without a plan, or where the strategy has none, the problem is planned here, and if that cannot be, the reasons are given. Raises
    ArtifactError where the plan is for another problem.
    """
    checked = Problem.from_document(problem, path)
    if plan is not None and plan["problem_sha256"] != artifacts.body_digest({"schema": "llmpq.problem", "version": 1, **problem}):
        raise LlmpqError(f"the plan was made for another problem than {path}; plan again")
    limits: dict[str, Any] = {"time_limit": time_limit, "gap": gap, "seed": seed}
    asked = planless.reason(plan) if plan is not None else None
    known = [assignment_of(checked, plan)] if plan is not None and asked is None else []
    body = {"problem": checked.name, "problem_sha256": artifacts.body_digest(checked.document), "source": checked.document["source"]}
    try:
        best = plan_from(checked, known, solver, **limits)
    except InfeasibleError as error:
        return {**body, "feasible": False, "message": str(error), "details": error.details, "sentences": [str(error)]}
    explained = best if plan is None or asked is not None else dict(plan)
    body |= {"feasible": True, "strategy": explained["strategy"], "objective_ms": explained["objective_ms"]}
    body |= {"best_objective_ms": best["objective_ms"], "best_bound_ms": best["certificate"]["bound"]}
    assignment = assignment_of(checked, explained)
    body["stages"] = [{**load, "sentence": stage_sentence(load)} for load in stage_loads(checked, assignment, explained["binding"])]
    body["binding"] = list(explained["binding"])
    body["changes"] = [_change(checked, change, best, solver, limits) for change in changes(checked, _links(best))]
    losses = why_it_loses(checked, best)
    body["baselines"] = [{**loss, "sentence": baseline_sentence(loss)} for loss in losses]
    sentences = head_sentences(checked, body, explained, asked)
    for part in ("stages", "changes", "baselines"):
        sentences += [item["sentence"] for item in body[part]]
    return {**body, "sentences": sentences}


def _links(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The links that the plan uses, the way back included."""
    names = [stage["device"] for stage in plan["stages"]]
    return [*itertools.pairwise(names), (names[-1], names[0])] if len(names) > 1 else []


def _change(problem: Problem, change: Change, best: Mapping[str, Any], solver: str, limits: Mapping[str, Any]) -> Document:
    """One change, planned again from the best plan known."""
    changed = Problem.from_document(change.changed(problem.document))
    found = plan_from(changed, [assignment_of(changed, best)], solver, **limits)
    gain = max(best["objective_ms"] - found["objective_ms"], 0.0)
    at_most = max(best["objective_ms"] - found["certificate"]["bound"], gain)
    entry = {
        "kind": change.kind,
        "where": change.where,
        "alike": list(change.alike),
        "amount": change.amount,
        "objective_ms": found["objective_ms"],
        "bound_ms": found["certificate"]["bound"],
        "gain_ms": gain,
        "gain_percent": 100 * gain / best["objective_ms"] if best["objective_ms"] > 0 else 0.0,
        "gain_at_most_ms": at_most,
        "status": found["certificate"]["status"],
        "seconds": found["certificate"]["seconds"],
        "moves": _moves(best, found),
    }
    return {**entry, "sentence": change_sentence(entry)}


def _moves(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The plan after the change, in short; "" where it is the same one."""

    def short(plan: Mapping[str, Any]) -> str:
        stages = []
        for stage in plan["stages"]:
            counts = {option: stage["options"].count(option) for option in dict.fromkeys(sorted(stage["options"]))}
            stages.append(f"{stage['device']} " + " + ".join(f"{count} × {option}" for option, count in counts.items()))
        return f"{', '.join(stages)}; micro-batches {plan['micro_batch']['prefill']} / {plan['micro_batch']['decode']}"

    return "" if short(before) == short(after) else short(after)
