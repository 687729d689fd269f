"""The smallest changes to a problem without any plan that would give it one, each alone: computed, not guessed.

Whether there is a plan depends on bytes and Σ omega alone: a candidate has one if its least Σ omega under memory (``least_omega``) is
within the quality budget. Times play no part, so of all micro-batches only those with the smallest workspaces matter.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from llmpq.plan.candidate import BUDGET_TOLERANCE, Candidate, build, within_budget
from llmpq.plan.least_omega import Front, LeastOmega, extend_front
from llmpq.plan.microbatch import MicroBatches, candidates
from llmpq.plan.orders import device_orders, exchangeable_classes
from llmpq.plan.problem import ENDS, PHASES, Device, Problem

Relaxation = dict[str, Any]
_NO_FRONT = (np.zeros(0, dtype=np.int64), np.zeros(0))


def relaxations(problem: Problem) -> list[Relaxation]:
    """Every kind of change that alone makes ``problem`` feasible, each as small as it can be.

    {"what": "memory", "device", "bytes"} for each device that more memory helps, the fewest bytes first; {"what": "option", "option",
    "devices", "end"} an option that these devices lack and others have (as many bytes as there; the devices are one that suffices, or
    all that are needed; "end" is null for layers); {"what": "slots", "slots"} the largest smaller batch; {"what": "quality_budget",
    "quality_budget"} the least Σ omega that fits.
    """
    return [*_more_memory(problem), *_missing_options(problem), *_smaller_batch(problem), *_larger_budget(problem)]


def tight_candidates(problem: Problem, *, alike: bool = False) -> list[Candidate]:
    """Every device order with the micro-batches whose workspaces are smallest: where none of these has a plan, no candidate has.

    With ``alike`` also the orders that differ from others in the devices' names only.
    """
    workspaces: dict[tuple[int, ...], MicroBatches] = {}
    for batches in problem.micro_batches:
        workspaces.setdefault(tuple(_workspace(device, batches) for device in problem.devices), batches)
    kept = [
        batches
        for sizes, batches in workspaces.items()
        if not any(other != sizes and all(a <= b for a, b in zip(other, sizes, strict=True)) for other in workspaces)
    ]
    return [build(problem, order, batches) for order in device_orders(problem, alike=alike) for batches in kept]


def _workspace(device: Device, batches: MicroBatches) -> int:
    return max(device.workspace_bytes[phase][size] for phase in PHASES for size in set(batches.sizes(phase)))


def least_omega(problem: Problem) -> float:
    """The least Σ omega of any plan that fits in memory; inf where none fits."""
    found = tight_candidates(problem)
    if problem.quality_budget is None:
        return 0.0 if any(fits_in_memory(problem, candidate) for candidate in found) else math.inf
    tables = LeastOmega(problem, found)
    return min((tables.least(candidate) for candidate in found), default=math.inf)


def feasible(problem: Problem) -> bool:
    """Whether some plan fits in memory and keeps the quality budget."""
    return within_budget(problem, least_omega(problem))


def most_layers(problem: Problem, candidate: Candidate) -> tuple[list[int], list[int]]:
    """Per stage, how many layers it holds at most (-1: not even its ends), and the bytes of the smallest one."""
    smallest = np.where(candidate.available, candidate.layer_bytes, np.iinfo(np.int64).max).min(axis=1).tolist()
    rooms = candidate.capacity.tolist()
    most = [-1 if room < 0 else problem.layers if size == 0 else room // size for room, size in zip(rooms, smallest, strict=True)]
    return most, smallest


def fits_in_memory(problem: Problem, candidate: Candidate) -> bool:
    """Whether some plan of the candidate fits, whatever its quality."""
    most, _ = most_layers(problem, candidate)
    return min(most) >= 1 and sum(most) >= problem.layers


def _more_memory(problem: Problem) -> list[Relaxation]:
    """Bytes that one device alone would need more, the fewest over all orders."""
    lacking: dict[int, int] = {}
    finder = _bytes_for_layers if problem.quality_budget is None else _BytesForQuality(problem)
    for candidate in tight_candidates(problem, alike=True):
        for device, lack in finder(problem, candidate):
            lacking[device] = min(lack, lacking.get(device, lack))
    # Of devices that can be exchanged the orders use the first ones; what helps one helps each.
    classes = exchangeable_classes(problem)
    least = {number: min(lack for other, lack in lacking.items() if classes[other] == number) for number in {classes[d] for d in lacking}}
    lacking = {device: least[number] for device, number in enumerate(classes) if number in least}
    ranked = sorted(lacking.items(), key=lambda item: (item[1], item[0]))
    return [{"what": "memory", "device": problem.devices[device].name, "bytes": lack} for device, lack in ranked]


def _bytes_for_layers(problem: Problem, candidate: Candidate) -> Iterator[tuple[int, int]]:
    """(device, bytes) for each stage: the others take as many layers as they can at their smallest options, it takes what is left."""
    most, smallest = most_layers(problem, candidate)
    for j, device in enumerate(candidate.order):
        others = [layers for k, layers in enumerate(most) if k != j]
        if all(layers >= 1 for layers in others):
            left = max(problem.layers - sum(others), 1)
            yield device, left * smallest[j] - int(candidate.capacity[j])


class _BytesForQuality:
    """(device, bytes) for each stage of a candidate: the fewest that let Σ omega stay within the budget, by dynamic programming.

    The stages before and after take their layers at the least Σ omega within their memory; for every range of layers that is left
    the stage's own front (bytes, Σ omega), not cut off at its memory, gives the bytes for the omega that is left.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        budget = problem.quality_budget or 0.0
        self.budget = budget + BUDGET_TOLERANCE * max(1.0, budget)
        self.tables = LeastOmega(problem, tight_candidates(problem))
        self.fronts: dict[int, dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]] = {}

    def __call__(self, problem: Problem, candidate: Candidate) -> Iterator[tuple[int, int]]:
        for end in range(len(candidate.ends)):
            before, after = self.tables.prefixes(candidate, end)
            for j, device in enumerate(candidate.order):
                needed = self._fewest(candidate, j, before[j], after[j + 1], self.budget - float(candidate.end_omega[end]))
                if needed is not None:
                    yield device, needed + int(candidate.end_bytes[end, j]) - int(candidate.capacity[j])

    def _fewest(self, candidate: Candidate, j: int, before: np.ndarray, after: np.ndarray, budget: float) -> int | None:
        fewest, fronts = None, self._fronts(candidate, j)
        allowed = budget - before[:, None] - after[None, :]
        for first, last in np.argwhere(np.triu(allowed >= 0, 1)).tolist():
            sizes, omega = fronts.get((first, last), _NO_FRONT)
            # The front is worth a search where its fewest bytes would be an improvement and its least omega is allowed.
            if len(sizes) and (fewest is None or sizes[0] < fewest) and omega[-1] <= allowed[first, last]:
                size = int(sizes[np.searchsorted(-omega, -allowed[first, last], side="left")])
                fewest = size if fewest is None else min(fewest, size)
        return fewest

    def _fronts(self, candidate: Candidate, j: int) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Bytes ascending and Σ omega descending of every run of layers on stage j, as far as the budget allows."""
        kind = self.tables.kind[candidate.order[j]]
        if kind not in self.fronts:
            offered = np.flatnonzero(candidate.available[j])
            sizes, omega = candidate.layer_bytes[j][offered], self.tables.omega[:, offered]
            room, found = int(sizes.max()) * len(omega), {}
            for first in range(len(omega)):
                front = Front.of_nothing(self.tables.omega.shape[1])
                for layer in range(first, len(omega)):
                    front = extend_front(front, offered, sizes, omega[layer], room).within(self.budget)
                    if not len(front.bytes):
                        break
                    found[first, layer + 1] = (front.bytes, front.omega)
            self.fronts[kind] = found
        return self.fronts[kind]


def _missing_options(problem: Problem) -> list[Relaxation]:
    """Options that some devices lack and others offer, of layers and of both ends, which would do if they were offered there too."""
    found: list[Relaxation] = []
    for end in (None, *ENDS):
        for option in problem.options if end is None else problem.end_options:
            lacking = [index for index, device in enumerate(problem.devices) if option not in _offers(device, end)]
            if not lacking or len(lacking) == len(problem.devices) or not feasible(_with_option(problem, end, option, lacking)):
                continue
            alone = next((index for index in lacking if feasible(_with_option(problem, end, option, [index]))), None)
            devices = [problem.devices[index].name for index in ([alone] if alone is not None else lacking)]
            found.append({"what": "option", "option": option, "end": end, "devices": devices})
    return found


def _offers(device: Device, end: str | None) -> dict[str, Any]:
    return dict(device.options if end is None else device.embedding if end == "embedding" else device.head)


def _with_option(problem: Problem, end: str | None, option: str, where: list[int]) -> Problem:
    """The problem with ``option`` offered on the devices ``where`` too, with the tables of the device on which it is smallest."""
    there = [_offers(device, end)[option] for device in problem.devices if option in _offers(device, end)]
    part, key = min(there, key=lambda item: item.resident_bytes), "options" if end is None else end
    devices = list(problem.devices)
    for index in where:
        changes: dict[str, Any] = {key: {**_offers(devices[index], end), option: part}}
        devices[index] = dataclasses.replace(devices[index], **changes)
    return dataclasses.replace(problem, devices=tuple(devices))


def _smaller_batch(problem: Problem) -> list[Relaxation]:
    """The largest number of resident requests with a plan; the KV cache shrinks in proportion, the micro-batches are those priced."""
    sizes = _priced_sizes(problem)

    def holds(slots: int) -> bool:
        return feasible(_with_slots(problem, slots, sizes))

    if _listed(problem):
        # Listed sizes split some numbers of requests into sizes that are priced and others not: no order to search by.
        fewer = next((slots for slots in range(problem.slots - 1, 0, -1) if holds(slots)), None)
    else:
        fewer = _largest(1, problem.slots - 1, holds)
    return [] if fewer is None else [{"what": "slots", "slots": fewer}]


def _largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """By bisection, the largest number in low..high for which ``holds``, where it holds below any for which it does; None for none."""
    if high < low or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _priced_sizes(problem: Problem) -> dict[str, set[int]]:
    """Per phase the micro-batch sizes for which every table of every device has an entry."""
    found: dict[str, set[int]] = {}
    for phase in PHASES:
        tables: list[Mapping[int, float]] = [device.workspace_bytes[phase] for device in problem.devices]
        for device in problem.devices:
            parts = (*device.options.values(), *device.embedding.values(), *device.head.values())
            tables += [part.ms[phase] for part in parts]
        found[phase] = set.intersection(*(set(table) for table in tables))
    return found


def _with_slots(problem: Problem, slots: int, sizes: Mapping[str, set[int]]) -> Problem:
    listed = {phase: [size for size in given if size <= slots] for phase, given in _listed(problem).items()}
    found = candidates(slots, listed.get("prefill"), listed.get("decode"))
    priced = tuple(item for item in found if all(sizes[phase].issuperset(item.sizes(phase)) for phase in PHASES))
    kv = {option: -(-size * slots // problem.slots) for option, size in problem.kv_bytes.items()}
    return dataclasses.replace(problem, slots=slots, requests=slots, kv_bytes=kv, micro_batches=priced)


def _listed(problem: Problem) -> dict[str, list[int]]:
    given = problem.document.get("micro_batches", {})
    return {phase: list(sizes) for phase, sizes in given.items() if sizes}


def _larger_budget(problem: Problem) -> list[Relaxation]:
    least = math.inf if problem.quality_budget is None else least_omega(problem)
    return [{"what": "quality_budget", "quality_budget": least}] if math.isfinite(least) else []
