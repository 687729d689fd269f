"""A Chrome trace (chrome://tracing, ui.perfetto.dev) of what the stages of a pipeline did when, measured or simulated."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


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


class Message(NamedTuple):
    """One message that a stage took from the one before (stage 0: from the last), from its sending until the stage had it.

    ``awaited`` are those sent while the stage waited already: theirs is the time on the link alone, others also lay in a buffer.
    """

    phase: str
    micro_batch: int
    rows: int
    sent_s: float
    taken_s: float
    awaited: bool


def chrome_trace(
    stages: Iterable[Mapping[str, Any]], origin_s: float, other: Mapping[str, Any], *, simulated: bool = False
) -> dict[str, Any]:
    """Trace events of all stages: one process per stage, a complete event ("X") per call and an asynchronous pair ("b", "e") per message;
    times in microseconds after ``origin_s``.

    ``stages`` have ``rank``, ``device``, ``first_layer``, ``layers``, ``calls`` (rows of Call) and ``messages`` (rows of Message);
    ``other`` goes into ``otherData``. Stages of a ``simulated`` run say so and have process numbers of their own, so that both traces can
    be opened together.
    """
    events: list[dict[str, Any]] = []
    stages = list(stages)
    for stage in stages:
        pid = stage["rank"] + (len(stages) if simulated else 0)
        last = stage["first_layer"] + stage["layers"] - 1
        name = f"{'simulated ' if simulated else ''}stage {stage['rank']}: {stage['device']}, layers {stage['first_layer']}–{last}"
        events.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}})
        events.append({"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}})
        events += [_call(Call(*row), pid, origin_s, simulated) for row in stage["calls"]]
        for number, row in enumerate(stage["messages"]):
            events += _message(Message(*row), f"{pid}/{number}", pid, origin_s)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(other)}


def trace_text(trace: Mapping[str, Any]) -> str:
    """A trace as a file holds it; ValueError for numbers that are none."""
    return json.dumps(trace, separators=(",", ":"), allow_nan=False) + "\n"


def _call(call: Call, pid: int, origin_s: float, simulated: bool) -> dict[str, Any]:
    arguments = {"micro_batch": call.micro_batch, "step": call.step, "rows": call.rows, "tokens": call.tokens}
    return {
        "name": f"{call.phase} {call.micro_batch}",
        "cat": call.phase,
        "ph": "X",
        "ts": round((call.start_s - origin_s) * 1e6, 1),
        "dur": round((call.end_s - call.start_s) * 1e6, 1),
        "pid": pid,
        "tid": 0,
        "args": arguments if simulated else {**arguments, "cpu_ms": round(call.cpu_s * 1e3, 3)},
    }


def _message(message: Message, identifier: str, pid: int, origin_s: float) -> list[dict[str, Any]]:
    shared = {"name": f"{message.phase} {message.micro_batch}", "cat": "link", "id": identifier, "pid": pid, "tid": 0}
    begin, end = (round((moment - origin_s) * 1e6, 1) for moment in (message.sent_s, message.taken_s))
    arguments = {"rows": message.rows, "awaited": message.awaited}
    return [{**shared, "ph": "b", "ts": begin, "args": arguments}, {**shared, "ph": "e", "ts": end}]
