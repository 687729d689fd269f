"""What a run was predicted to take: the plan's own figures where they are for just this run, else a simulation of what it served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpq.serve.job import Settings
from llmpq.simulate.predict import seconds_of, simulate_workload
from llmpq.simulate.run import Request, Simulation

NATIVE = "native"
TIMES = ("prefill_s", "decode_s", "total_s")


@dataclass(frozen=True)
class Prediction:
    """``throughput`` as serve.json has it; ``simulation`` of the requests served, where the problem is known."""

    throughput: dict[str, Any]
    simulation: Simulation | None


def predict(
    plan: Mapping[str, Any],
    problem: Mapping[str, Any] | None,
    requests: Sequence[Mapping[str, Any]],
    tokens: Sequence[int],
    options: Settings,
    share: float | None,
    backend: str = NATIVE,
) -> Prediction:
    """The prediction for ``requests``, which made ``tokens`` each, served by the schedule of ``options``.

    The formula holds for the barrier and all of the plan's own workload, every request as long as the longest. Everything else is simulated
    with the problem's cost tables and the tokens that each request made. Without the problem there are the plan's figures, for ``share``
    of its workload (None: the part that makes as many tokens), and none for another schedule than the plan's. Nor is there any where the
    plan was priced for another ``backend`` than the one that serves.
    """
    if plan.get("backend", NATIVE) != backend:
        return Prediction({**dict.fromkeys(("tokens_per_s", *TIMES)), "by": None}, None)
    simulation = None if problem is None else _simulated(problem, plan, requests, tokens, options)
    if simulation is not None and not _formula_holds(problem or {}, plan, requests, tokens, options):
        return Prediction({**seconds_of(simulation), "by": "simulation"}, simulation)
    if options.schedule != plan["schedule"]:
        return Prediction({**dict.fromkeys(("tokens_per_s", *TIMES)), "by": None}, simulation)
    part = _pace_share(plan, sum(tokens)) if share is None else share
    scaled = {key: plan["predicted"][key] * part for key in TIMES}
    by = "formula" if plan["schedule"] == "barrier" else "simulation"
    return Prediction({"tokens_per_s": plan["predicted"]["tokens_per_s"], **scaled, "by": by}, simulation)


def _simulated(
    problem: Mapping[str, Any], plan: Mapping[str, Any], requests: Sequence[Mapping[str, Any]], tokens: Sequence[int], options: Settings
) -> Simulation:
    made = [
        Request(len(request["prompt_tokens"]), request["max_new_tokens"], count) for request, count in zip(requests, tokens, strict=True)
    ]
    return simulate_workload(problem, plan, made, schedule=options.schedule, slots=options.slots, record=True)


def _formula_holds(
    problem: Mapping[str, Any], plan: Mapping[str, Any], requests: Sequence[Mapping[str, Any]], tokens: Sequence[int], options: Settings
) -> bool:
    workload = problem["workload"]
    alike = all(len(request["prompt_tokens"]) == workload["prompt_tokens"] for request in requests)
    whole = (len(requests), options.slots) == (workload["requests"], workload["slots"])
    return options.schedule == plan["schedule"] == "barrier" and whole and alike and set(tokens) == {workload["new_tokens"]}


def _pace_share(plan: Mapping[str, Any], tokens: int) -> float:
    """The part of the plan's own workload that makes as many new ``tokens``; all of it where the plan does not say how many it makes."""
    per_second = plan["predicted"]["tokens_per_s"]
    return tokens / (per_second * plan["predicted"]["total_s"]) if per_second else 1.0
