"""What if: a problem with one thing changed, to plan again and see what it would buy."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmpq.plan.orders import exchangeable_classes
from llmpq.plan.problem import PHASES, Problem

Document = dict[str, Any]

GIB = 2**30
SMALL_BYTES = 10 * GIB  # below, a device gains a tenth of its memory instead of one GiB
STEP = 0.1  # 10 % more memory of a small device, speed, bandwidth or budget


@dataclass(frozen=True)
class Change:
    """``kind`` is memory, speed, bandwidth or quality_budget; ``where`` a device, ``a → b``, or "" for what is common to all.

    ``amount`` says it in words; ``alike`` are other devices of which the same is true, since they are equal.
    """

    kind: str
    where: str
    amount: str
    alike: tuple[str, ...]
    apply: Callable[[Document], None]

    def changed(self, document: Mapping[str, Any]) -> Document:
        """A copy of a problem.json with the change made; as it stands, without its provenance."""
        copied = copy.deepcopy({key: value for key, value in document.items() if key != "provenance"})
        self.apply(copied)
        return copied


def changes(problem: Problem, used_links: list[tuple[str, str]]) -> Iterator[Change]:
    """More memory and speed for every device (once for equal ones), more bandwidth for each of ``used_links``, a larger budget."""
    classes = exchangeable_classes(problem)
    for index, device in enumerate(problem.devices):
        if classes.index(classes[index]) != index:
            continue
        alike = tuple(other.name for k, other in enumerate(problem.devices) if classes[k] == classes[index] and k != index)
        small = device.memory_bytes < SMALL_BYTES
        extra = max(round(STEP * device.memory_bytes), 1) if small else GIB
        words = f"10 % more memory ({extra:,} bytes)" if small else "1 GiB more memory"
        yield Change("memory", device.name, words, alike, _more_memory(index, extra))
        yield Change("speed", device.name, "10 % more speed", alike, _more_speed(index))
    for a, b in used_links:
        yield Change("bandwidth", f"{a} → {b}", "10 % more bandwidth", (), _more_bandwidth([(a, b)]))
    if len(problem.devices) > 1:
        yield Change("bandwidth", "", "10 % more bandwidth on every link", (), _more_bandwidth(None))
    if problem.quality_budget:
        yield Change("quality_budget", "", "10 % more quality budget", (), _more_budget)


def _more_memory(index: int, extra: int) -> Callable[[Document], None]:
    def apply(document: Document) -> None:
        document["devices"][index]["memory_bytes"] += extra

    return apply


def _more_speed(index: int) -> Callable[[Document], None]:
    """All computing of the device in 1 / 1.1 of its time; links stay as they are."""

    def apply(document: Document) -> None:
        device = document["devices"][index]
        parts = [*device["options"].values(), *device["embedding"].values(), *device["head"].values()]
        for part in parts:
            for phase in PHASES:
                part[f"{phase}_ms"] = {size: ms / (1 + STEP) for size, ms in part[f"{phase}_ms"].items()}
        if "overhead_ms" in device:
            device["overhead_ms"] = {phase: ms / (1 + STEP) for phase, ms in device["overhead_ms"].items()}

    return apply


def _more_bandwidth(pairs: list[tuple[str, str]] | None) -> Callable[[Document], None]:
    def apply(document: Document) -> None:
        for link in document["links"]:
            if pairs is None or (link["from"], link["to"]) in pairs:
                link["bytes_per_ms"] *= 1 + STEP

    return apply


def _more_budget(document: Document) -> None:
    document["objective"] = {"quality_budget": document["objective"]["quality_budget"] * (1 + STEP)}
