"""Why there is no plan: which device lacks how many bytes, how much damage the quality budget forbids, and the least that would help."""

import dataclasses
import math

import numpy as np

from llmpq.errors import InfeasibleError
from llmpq.plan.candidate import Candidate, build
from llmpq.plan.microbatch import balanced
from llmpq.plan.problem import Problem
from llmpq.plan.relaxations import Relaxation, feasible, relaxations


def readable(size: int) -> str:
    """Bytes exactly, and in MiB where that helps."""
    return f"{size:,} bytes" + (f" ({size / 2**20:,.1f} MiB)" if size >= 2**20 else "")


def infeasible_error(problem: Problem) -> InfeasibleError:
    """The error for a problem without any plan: one message, and as ``details`` {"reason": memory | quality, "least_omega", "relaxations"}.

    ``least_omega`` is the least Σ omega of a plan that fits in memory, null where none fits; ``relaxations`` as in ``plan.relaxations``.
    """
    found, unlimited = relaxations(problem), dataclasses.replace(problem, quality_budget=None)
    fits = feasible(unlimited)
    least = next((item["quality_budget"] for item in found if item["what"] == "quality_budget"), None)
    if fits and least is not None:
        message = (
            f"no plan keeps the quality budget: the least sum of omega that fits in memory is {least:.6g}, objective.quality_budget is "
            f"{problem.quality_budget:.6g}"
        )
    else:
        message = "no plan fits in memory, even with every layer, embedding and head at its smallest option"
    details = {"reason": "quality" if fits else "memory", "least_omega": least, "relaxations": found}
    return InfeasibleError(f"{message}{_remedies(problem, found)}", details)


def _remedies(problem: Problem, found: list[Relaxation]) -> str:
    memory = [f"device '{item['device']}' lacks {readable(item['bytes'])}" for item in found if item["what"] == "memory"]
    others = ", or ".join(_remedy(problem, item) for item in found if item["what"] != "memory")
    if memory:
        alone = "more memory on any one of them would do" if len(memory) > 1 else "with them there is a plan"
        return f": {' or '.join(memory)} ({alone}{'; so would ' if others else ''}{others})"
    if others:
        return f"; what would do: {others}"
    return "; more memory on one device alone would not help, nor a smaller batch: more or larger devices are needed"


def _remedy(problem: Problem, item: Relaxation) -> str:
    if item["what"] == "option":
        part = "" if item["end"] is None else f" for the {item['end']}"
        return f"offering option '{item['option']}'{part} on {', '.join(item['devices'])} too, as large as elsewhere"
    if item["what"] == "slots":
        return f"workload.slots {item['slots']} in place of {problem.slots}"
    return f"objective.quality_budget {rounded_up(item['quality_budget'])}"


def rounded_up(value: float) -> str:
    """Six digits, never less than ``value``: a budget that can be typed."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    return f"{math.ceil(value / unit) * unit:.6g}"


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
        return f"{strategy}: {infeasible_error(problem)}"
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
