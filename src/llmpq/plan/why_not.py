"""Why a strategy has no plan where the problem may have one."""

from llmpq.plan.infeasible import explain_baseline
from llmpq.plan.problem import Problem
from llmpq.plan.strategies import STRATEGIES

# Strategies that fail for the same reason as another one: no single option fits on an even split, or on any cut.
_LIKE = {"even": "uniform", "het": "pipeedge", "llmpq-transfer": "adabits"}
_PUBLISHED = "-published"


def explain_strategy(problem: Problem, strategy: str) -> str:
    """One message that names the strategy, and the device and bytes that it lacks."""
    base = strategy.removesuffix(_PUBLISHED)
    if strategy != base and len(problem.devices) > problem.layers:
        return f"{strategy}: uses every device, but there are {len(problem.devices)} devices and {problem.layers} layers"
    if strategy != base and _has_plan(problem, base):
        order = ", ".join(device.name for device in problem.devices)
        return f"{strategy}: nothing fits with the devices in the order given ({order}) and the published micro-batches; '{base}' has a plan"
    like = _LIKE.get(base, base)
    message = explain_baseline(problem, like)
    return message if message.startswith(f"{strategy}: ") else f"{strategy}: {message.removeprefix(f'{like}: ')}"


def _has_plan(problem: Problem, strategy: str) -> bool:
    from llmpq.plan.search import all_candidates

    return STRATEGIES[strategy].load()(problem, all_candidates(problem)) is not None
