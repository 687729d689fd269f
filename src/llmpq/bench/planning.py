"""How long planning takes: the exact search with its baselines, and llmpq-transfer, each in a fresh process."""

from collections.abc import Mapping
from typing import Any

from llmpq.bench.isolated import Stopwatch, in_fresh_process
from llmpq.bench.record import finite
from llmpq.errors import LlmpqError

# Most seconds spent on the program of the best order alone, after planning (``order_gap``).
ORDER_LIMIT_S = 60.0
_COUNTS = ("enumerated", "pruned", "solved")


def plan_case(
    body: Mapping[str, Any], strategy: str, solver: str, time_limit_s: float, gap: float, *, order_gap: bool = False
) -> dict[str, Any]:
    """Plan one problem and measure it: the measured fields of a Record.

    ``order_gap``: afterwards, and not timed, the program of the plan's own order and micro-batches is solved for ORDER_LIMIT_S at most.
    """
    options = {"solver": solver, "time_limit": time_limit_s, "gap": gap}
    found: dict[str, Any] = in_fresh_process(f"planning {body['name']} ({strategy})", _planned, dict(body), strategy, options, order_gap)
    return found


def why_no_plan(error: LlmpqError) -> str:
    """The status of a case without a plan."""
    return type(error).__name__.removesuffix("Error").lower() + ": " + str(error)[:120]


def _planned(body: dict[str, Any], strategy: str, options: dict[str, Any], order_gap: bool) -> dict[str, Any]:
    from llmpq.plan.planner import plan

    watch = Stopwatch()
    try:
        found = plan(body, strategy, **options)
    except LlmpqError as error:
        measured = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
        nothing = dict.fromkeys(("gap", "objective_ms", "bound_ms"))
        return {**measured, **nothing, "status": why_no_plan(error), **dict.fromkeys(_COUNTS, 0)}
    measured = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
    certificate = found["certificate"]
    return {
        **measured,
        "status": certificate["status"],
        "gap": certificate["gap"],
        "objective_ms": found["objective_ms"],
        "bound_ms": finite(certificate["bound"]),
        **{name: certificate["candidates"][name] for name in _COUNTS},
        **({"order_gap": _order_gap(body, found, options)} if order_gap else {}),
    }


def _order_gap(body: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> float | None:
    """Relative gap between the plan and a bound of its own order and micro-batches."""
    from llmpq.plan.candidate import build
    from llmpq.plan.known import assignment_of
    from llmpq.plan.milp import build_model
    from llmpq.plan.problem import Problem
    from llmpq.plan.solve import solve

    problem = Problem.from_document(body)
    chosen = assignment_of(problem, found)
    model = build_model(problem, build(problem, chosen.order, chosen.batches))
    bound = finite(solve(model, options["solver"], time_limit_s=ORDER_LIMIT_S, gap=options["gap"]).bound)
    objective = found["objective_ms"]
    return None if bound is None else max(objective - bound, 0.0) / objective
