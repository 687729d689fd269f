"""Why a strategy has no plan where the problem may have one."""

from llmpq.plan.infeasible import explain_baseline
from llmpq.plan.offload import WIDTHS
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
        return (
            f"{strategy}: nothing fits with the devices in the order given ({order}) and the published micro-batches; '{base}' has a plan"
        )
    if strategy == "offload":
        return _explain_offload(problem)
    like = _LIKE.get(base, base)
    message = explain_baseline(problem, like)
    return message if message.startswith(f"{strategy}: ") else f"{strategy}: {message.removeprefix(f'{like}: ')}"


def _explain_offload(problem: Problem) -> str:
    without = [device["name"] for device in problem.document["devices"] if "host" not in device]
    if len(without) == len(problem.devices):
        return "offload: no device of this problem has host memory; give devices[].host (memory_bytes, bytes_per_ms)"
    if not any(bits in WIDTHS for bits in problem.bits.values()):
        return f"offload: the problem has no option of {' or '.join(map(str, WIDTHS))} bits"
    kept = f"; {', '.join(without)} cannot offload" if without else ""
    return f"offload: KV cache, ends, workspace and two layers do not fit on any devices, or the rest not in host memory{kept}"


def _has_plan(problem: Problem, strategy: str) -> bool:
    from llmpq.plan.search import compared_candidates

    return STRATEGIES[strategy].load()(problem, compared_candidates(problem)) is not None
