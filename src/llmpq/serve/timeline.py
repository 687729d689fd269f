"""What each stage did when: recorded per call while serving, written as a Chrome trace (chrome://tracing, ui.perfetto.dev)."""

import time
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_CALLS = 20_000  # per stage; beyond, only the sums go on, so that memory does not grow with the length of a run


_PHASES = ("prefill", "decode")


class Call(NamedTuple):
    """One model call of a stage: seconds on the host's monotonic clock, slow-down included; ``cpu_s`` is the work itself."""

    phase: str
    micro_batch: int
    step: int
    rows: int
    tokens: int
    start_s: float
    end_s: float
    cpu_s: float


_WIDTH = len(Call._fields)


class Timeline:
    """The calls of one stage and the sums over them."""

    def __init__(self) -> None:
        self._rows = array("d", bytes(8 * _WIDTH * MAX_CALLS))  # all of it now, so that a long run does not grow
        self.count = 0
        self.busy_s = 0.0
        self.cpu_s = 0.0
        self.process_start_s = 0.0

    @property
    def calls(self) -> list[Call]:
        """The first MAX_CALLS of them."""
        rows = (self._rows[_WIDTH * number : _WIDTH * (number + 1)] for number in range(min(self.count, MAX_CALLS)))
        return [Call(_PHASES[int(row[0])], *map(int, row[1:5]), *row[5:]) for row in rows]

    def process_cpu_s(self) -> float:
        """Processor seconds of the whole process since the first measured call: the calls, and all that moves data between them."""
        return time.process_time() - self.process_start_s

    def add(self, call: Call) -> None:
        """Record one finished call."""
        if self.count < MAX_CALLS:
            row = array("d", (_PHASES.index(call.phase), *call[1:]))
            self._rows[_WIDTH * self.count : _WIDTH * (self.count + 1)] = row
        self.count += 1
        self.busy_s += call.end_s - call.start_s
        self.cpu_s += call.cpu_s


def chrome_trace(stages: Iterable[Mapping[str, Any]], origin_s: float, other: Mapping[str, Any]) -> dict[str, Any]:
    """Trace events of all stages: one process per stage, one complete event ("X") per call; times in microseconds after ``origin_s``.

    ``stages`` have ``rank``, ``device``, ``first_layer``, ``layers`` and ``calls`` (rows of Call); ``other`` goes into ``otherData``.
    """
    events: list[dict[str, Any]] = []
    for stage in stages:
        last = stage["first_layer"] + stage["layers"] - 1
        name = f"stage {stage['rank']}: {stage['device']}, layers {stage['first_layer']}–{last}"
        events.append({"name": "process_name", "ph": "M", "pid": stage["rank"], "args": {"name": name}})
        events.append({"name": "process_sort_index", "ph": "M", "pid": stage["rank"], "args": {"sort_index": stage["rank"]}})
        for row in stage["calls"]:
            call = Call(*row)
            events.append(
                {
                    "name": f"{call.phase} {call.micro_batch}",
                    "cat": call.phase,
                    "ph": "X",
                    "ts": round((call.start_s - origin_s) * 1e6, 1),
                    "dur": round((call.end_s - call.start_s) * 1e6, 1),
                    "pid": stage["rank"],
                    "tid": 0,
                    "args": {
                        "micro_batch": call.micro_batch,
                        "step": call.step,
                        "rows": call.rows,
                        "tokens": call.tokens,
                        "cpu_ms": round(call.cpu_s * 1e3, 3),
                    },
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(other)}
