"""Why there is no plan: which device lacks how many bytes at the lowest options, or how much damage the quality budget forbids."""

import numpy as np

from llmpq.plan.candidate import Candidate, build
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.microbatch import balanced
from llmpq.plan.problem import Problem


def readable(size: int) -> str:
    """Bytes exactly, and in MiB where that helps."""
    return f"{size:,} bytes" + (f" ({size / 2**20:,.1f} MiB)" if size >= 2**20 else "")


def explain_problem(problem: Problem, candidates: list[Candidate]) -> str:
    """One message for a problem without any plan."""
    missing = _missing_bytes(problem, candidates, None)
    if missing:
        return f"no plan fits in memory, even with every layer at its smallest option: {_sentence(missing)}"
    tables = LeastOmega(problem, candidates)
    omega = np.array([problem.omega[option] for option in problem.options])
    least = min(tables.least(candidate) for candidate in candidates)
    unlimited = float(omega.min(axis=0).sum())
    return (
        f"no plan keeps the quality budget: the least sum of omega that fits in memory is {least:.6g}, objective.quality_budget is "
        f"{problem.quality_budget:.6g} (with unlimited memory the least is {unlimited:.6g}); raise the budget or the devices' memory"
    )


def explain_baseline(problem: Problem, strategy: str) -> str:
    """One message for a baseline that has no plan where another strategy may have one."""
    candidates = [build(problem, order, batches) for order, batches in _all(problem)]
    lowest = min(problem.bits.values())
    options = [option for option in problem.options if problem.bits[option] == lowest]
    if strategy == "uniform":
        shortages = [_even_shortage(problem, candidate, option) for candidate in candidates for option in options]
        worst = min((item for item in shortages if item is not None), key=lambda item: (sum(item[1].values()), item[0]), default=None)
        if worst is not None:
            option, lacking = worst
            parts = ", ".join(f"device '{name}' lacks {readable(size)}" for name, size in lacking.items())
            return f"uniform: no single width fits on an even split of the layers; at the lowest option '{option}' {parts}"
    elif strategy == "pipeedge":
        missing = _missing_bytes(problem, candidates, options)
        if missing:
            return f"pipeedge: no single width fits on any cut; at the lowest ({', '.join(options)}) {_sentence(missing)}"
    else:
        return f"{strategy}: {explain_problem(problem, candidates)}"
    return f"{strategy}: no single width is offered by the devices it would need; the lowest is {', '.join(options)}"


def _all(problem: Problem) -> list[tuple]:
    from llmpq.plan.orders import device_orders

    return [(order, batches) for order in device_orders(problem) for batches in problem.micro_batches]


def _even_shortage(problem: Problem, candidate: Candidate, option: str) -> tuple[str, dict[str, int]] | None:
    b = problem.options.index(option)
    if not candidate.available[:, b].all():
        return None
    needed = candidate.layer_bytes[:, b] * np.array(balanced(problem.layers, candidate.stages))
    short = needed - candidate.capacity
    return option, {problem.devices[device].name: int(lack) for device, lack in zip(candidate.order, short, strict=True) if lack > 0}


def _missing_bytes(problem: Problem, candidates: list[Candidate], options: list[str] | None) -> dict[str, int]:
    """Per device, the bytes that it alone would need more for some plan to fit; {} where a plan fits already.

    The others take as many layers as they can at the smallest of ``options`` (all, if None); it takes what is left.
    """
    missing: dict[str, int] = {}
    allowed = [options is None or option in options for option in problem.options]
    for candidate in candidates:
        offered = candidate.available & np.array(allowed)[None, :]
        if not offered.any(axis=1).all():
            continue
        smallest = np.where(offered, candidate.layer_bytes, np.iinfo(np.int64).max).min(axis=1)
        most = [
            problem.layers if size == 0 and room >= 0 else max(-1, int(room // size)) if size else -1
            for room, size in zip(candidate.capacity.tolist(), smallest.tolist(), strict=True)
        ]
        if min(most) >= 1 and sum(most) >= problem.layers:
            return {}
        for j, device in enumerate(candidate.order):
            others = [layers for k, layers in enumerate(most) if k != j]
            if any(layers < 1 for layers in others):
                continue
            left = max(problem.layers - sum(others), 1)
            lack = int(left * smallest[j] - candidate.capacity[j])
            name = problem.devices[device].name
            if lack > 0:
                missing[name] = min(missing.get(name, lack), lack)
    return missing


def _sentence(missing: dict[str, int]) -> str:
    ranked = sorted(missing.items(), key=lambda item: item[1])
    parts = [f"device '{name}' lacks {readable(size)}" for name, size in ranked]
    return " or ".join(parts) + (" (any one of these would do)" if len(parts) > 1 else "")
