"""All device orders at once: which classes of devices have worked so far, and which works next.

A node of the graph is (how many devices of each class are used, class of the next stage); a path from a first stage through the nodes to a
last one is a device order, and every distinct order is a path. The bounds of ``pace`` walk the graph once for all orders.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmpq.plan.orders import exchangeable_classes
from llmpq.plan.problem import Problem

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Step:
    """Nodes ``source`` [K] whose next stage is of class ``of``; ``target[m]`` [K] is the node reached when class m follows it, or -1."""

    of: int
    source: Ints
    target: dict[int, Ints]


class Routes:
    """``steps`` in order of the number of stages used, ``start[f, m]`` the node after a first stage of class f when class m is next;
    ``between`` are the classes that work between two others in some order."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        numbers = exchangeable_classes(problem)
        self.devices = [[index for index, number in enumerate(numbers) if number == c] for c in range(max(numbers) + 1)]
        self.classes = len(self.devices)
        self.nodes: dict[tuple[tuple[int, ...], int], int] = {}
        self.start: dict[tuple[int, int], int] = {}
        self.steps: list[Step] = []
        self._list()
        self.between = {step.of for step in self.steps if step.target}

    def _list(self) -> None:
        level: list[tuple[tuple[int, ...], int]] = []
        for f in range(self.classes):
            used = tuple(int(c == f) for c in range(self.classes))
            for m in self._next(used):
                self.start[f, m] = self._node(used, m, level)
        while level:
            following: list[tuple[tuple[int, ...], int]] = []
            for n in range(self.classes):
                here = [key for key in level if key[1] == n]
                targets: dict[int, list[int]] = {m: [] for m in range(self.classes)}
                for used, _ in here:
                    after = tuple(count + int(c == n) for c, count in enumerate(used))
                    possible = self._next(after)
                    for m, found in targets.items():
                        found.append(self._node(after, m, following) if m in possible else -1)
                if here:
                    reached = {m: np.array(found, dtype=np.intp) for m, found in targets.items() if max(found) >= 0}
                    self.steps.append(Step(n, np.array([self.nodes[key] for key in here], dtype=np.intp), reached))
            level = following

    def _node(self, used: tuple[int, ...], m: int, level: list[tuple[tuple[int, ...], int]]) -> int:
        if (used, m) not in self.nodes:
            self.nodes[used, m] = len(self.nodes)
            level.append((used, m))
        return self.nodes[used, m]

    def _next(self, used: tuple[int, ...]) -> list[int]:
        """Classes with a free device that shares no physical one with those at work; none once every layer has a stage."""
        working = [device for devices, count in zip(self.devices, used, strict=True) for device in devices[:count]]
        if len(working) >= self.problem.layers:
            return []
        free = ((m, devices[count]) for m, (devices, count) in enumerate(zip(self.devices, used, strict=True)) if count < len(devices))
        return [m for m, device in free if not any(self.problem.excludes(device, other) for other in working)]

    def pair(self, a: int, b: int) -> tuple[int, int] | None:
        """Two devices, one of each class, that may work together; None where there are none."""
        both = ((x, y) for x, y in itertools.product(self.devices[a], self.devices[b]) if x != y)
        return next(((x, y) for x, y in both if not self.problem.excludes(x, y)), None)

    def order(self, classes: list[int]) -> tuple[int, ...]:
        """Devices of an order of classes: of each class the lowest first, as ``orders.device_orders`` names them."""
        taken = [0] * self.classes
        order = []
        for c in classes:
            order.append(self.devices[c][taken[c]])
            taken[c] += 1
        return tuple(order)

    def orders(self) -> int:
        """How many orders of classes there are."""
        ways = np.zeros(len(self.nodes) + 1, dtype=object)
        for node in self.start.values():
            ways[node] += 1
        for step in self.steps:
            for target in step.target.values():
                for source, reached in zip(step.source, target, strict=True):
                    ways[reached] += ways[source]
        # Every node may be the last but one: its next stage ends the order.
        return int(sum(ways[: len(self.nodes)])) + self.classes
