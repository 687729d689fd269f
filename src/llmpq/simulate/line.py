"""The stages and links of a pipeline in simulated time, as the runtime uses them: first come, first served, one call at a time each.

Stage 0 is also the driver: it computes a call where it makes it, and waits where the schedule waits for a result. Results come back in the
order of the calls, for every stage and link keeps it. So a call's way is known as soon as it is made, and no agenda of events is needed.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from llmpq.simulate.costs import Costs, Route

MAX_EVENTS = 400_000  # recorded; beyond, only the sums go on, so that memory does not grow with the length of a run


class Event(NamedTuple):
    """One call on one resource (``stage 0``, ``link 0`` = stage 0 → 1, ``return``); times in ms since the beginning.

    ``tokens`` are those of each row: the padded prompt, or 1. ``step`` is the index of the token made, 0 where rows are not at the same.
    """

    resource: str
    call: int
    phase: str
    micro_batch: int
    step: int
    rows: int
    tokens: int
    start_ms: float
    end_ms: float


@dataclass
class Line:
    """``now`` is the time on stage 0, ``left`` when the newest call left the last stage; ``events`` are kept where ``record`` says so.

    ``pause_ms`` is what whoever makes the calls needs between a result and the next call."""

    costs: Costs
    record: bool = False
    pause_ms: float = 0.0
    now: float = 0.0
    arrived: float = 0.0
    left: float = 0.0
    calls: int = 0
    events: list[Event] = field(default_factory=list)
    _returns: deque[float] = field(default_factory=deque)
    _routes: dict[tuple[str, float, int], Route] = field(default_factory=dict)
    _uses: Counter[tuple[str, float, int]] = field(default_factory=Counter)
    _free: list[float] = field(default_factory=list)
    _link_free: list[float] = field(default_factory=list)
    _back_free: float = 0.0

    def submit(self, phase: str, micro_batch: int, rows: float, length: int, step: int = 0) -> None:
        """Make a call: stage 0 computes it now, the others when they come to it."""
        key = (phase, rows, length)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = self.costs.route(*key)
            self._free = self._free or [0.0] * len(route.stages)
            self._link_free = self._link_free or [0.0] * len(route.links)
        self._uses[key] += 1
        start = self.now
        end = self.now = start + route.stages[0]
        spans = [(start, end)]
        overlapped, free, link_free = self.costs.overlapped_sends, self._free, self._link_free
        for link, send in enumerate(route.links):
            start = max(end, link_free[link])
            arrival = link_free[link] = start + send
            if not overlapped:
                free[link] = arrival
                if link == 0:
                    self.now = arrival
            spans.append((start, arrival))
            start = max(arrival, free[link + 1])
            end = free[link + 1] = start + route.stages[link + 1]
            spans.append((start, end))
        self.left = end
        if route.links:
            start = max(end, self._back_free)
            end = self._back_free = start + route.back
            spans.append((start, end))
        self._returns.append(end)
        if self.record and len(self.events) < MAX_EVENTS:
            self._keep(phase, micro_batch, step, max(1, round(rows)), length, spans)
        self.calls += 1

    def collect(self) -> float:
        """Wait on stage 0 for the result of the oldest call; returns the time. ``arrived`` is when it was there."""
        self.arrived = self._returns.popleft()
        self.now = max(self.now, self.arrived + self.pause_ms)
        return self.now

    @property
    def event_count(self) -> int:
        """Calls on resources so far."""
        return sum(
            count * (len(self._routes[key].stages) + len(self._routes[key].links) + bool(self._routes[key].links))
            for key, count in self._uses.items()
        )

    def busy_ms(self, phase: str) -> tuple[list[float], list[float]]:
        """Milliseconds that each stage and each link (the way back is the last) was at work in calls of ``phase``."""
        stages, links = [0.0] * len(self._free), [0.0] * len(self._free)
        for key, count in self._uses.items():
            if key[0] == phase:
                route = self._routes[key]
                for j, ms in enumerate(route.stages):
                    stages[j] += count * ms
                for j, ms in enumerate((*route.links, route.back)):
                    links[j] += count * ms
        return stages, links

    def _keep(self, phase: str, micro_batch: int, step: int, rows: int, length: int, spans: list[tuple[float, float]]) -> None:
        tokens, way_back = length if phase == "prefill" else 1, 2 * len(self._free) - 1
        for place, (start, end) in enumerate(spans):
            resource = "return" if place == way_back else f"{'link' if place % 2 else 'stage'} {place // 2}"
            self.events.append(Event(resource, self.calls, phase, micro_batch, step, rows, tokens, start, end))
