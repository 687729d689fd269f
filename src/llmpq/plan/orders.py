"""Device orders worth trying: every distinct one, leaving devices out included, without the symmetric copies of equal devices."""

import dataclasses
import itertools
from collections.abc import Iterator

from llmpq.plan.problem import Device, Problem


def exchangeable_classes(problem: Problem) -> list[int]:
    """Class number of each device: two devices of a class can be swapped in any order without changing a single number.

    They must have equal tables and memory, equal links with every other device, equal links both ways between them, and exclude the
    same others (shared physical devices). The relation is transitive, so comparing with the first of each class is enough.
    """
    first_of: list[int] = []
    classes = []
    for index in range(len(problem.devices)):
        found = next((number for number, other in enumerate(first_of) if _exchangeable(problem, other, index)), None)
        if found is None:
            found = len(first_of)
            first_of.append(index)
        classes.append(found)
    return classes


def _exchangeable(problem: Problem, a: int, b: int) -> bool:
    if _nameless(problem.devices[a]) != _nameless(problem.devices[b]):
        return False
    links = problem.links
    others = (c for c in range(len(problem.devices)) if c not in (a, b))
    return (problem.excludes(a, b) or links[a, b] == links[b, a]) and all(_same_seen(problem, a, b, c) for c in others)


def _same_seen(problem: Problem, a: int, b: int, c: int) -> bool:
    """Whether ``a`` and ``b`` stand in the same relation to ``c``; links of pairs that are never in one order do not matter."""
    links = problem.links
    if problem.excludes(a, c) or problem.excludes(b, c):
        return problem.excludes(a, c) and problem.excludes(b, c)
    return links[a, c] == links[b, c] and links[c, a] == links[c, b]


def _nameless(device: Device) -> Device:
    return dataclasses.replace(device, name="", type="", uses=frozenset())


def device_orders(problem: Problem, *, alike: bool = False) -> Iterator[tuple[int, ...]]:
    """Orders of 1 to min(devices, layers) devices without a shared physical device; of exchangeable ones the lowest come first.

    Of orders that differ in no number (equal devices at every place, equal links between neighbours and back) the first is enough:
    machines whose devices are alike one by one, say; with ``alike`` all of them are listed.
    """
    kinds = _kinds(problem)
    seen = set()
    for order in _orders(problem):
        key = tuple(kinds[device] for device in order), tuple(problem.links[pair] for pair in _hops(order))
        if alike or key not in seen:
            seen.add(key)
            yield order


def _kinds(problem: Problem) -> list[int]:
    """Devices with equal tables and memory have the same number."""
    devices = [_nameless(device) for device in problem.devices]
    return [devices.index(device) for device in devices]


def _hops(order: tuple[int, ...]) -> list[tuple[int, int]]:
    """Between neighbours, and from the last stage back to the first."""
    return [*itertools.pairwise(order), (order[-1], order[0])] if len(order) > 1 else []


def _orders(problem: Problem) -> Iterator[tuple[int, ...]]:
    classes = exchangeable_classes(problem)
    members: dict[int, list[int]] = {}
    for index, number in enumerate(classes):
        members.setdefault(number, []).append(index)

    def extend(chosen: tuple[int, ...], used: dict[int, int], length: int) -> Iterator[tuple[int, ...]]:
        if len(chosen) == length:
            yield chosen
            return
        for number, devices in members.items():
            taken = used.get(number, 0)
            if taken < len(devices) and not any(problem.excludes(devices[taken], other) for other in chosen):
                yield from extend((*chosen, devices[taken]), {**used, number: taken + 1}, length)

    for length in range(min(len(problem.devices), problem.layers), 0, -1):
        yield from extend((), {}, length)
