"""What a finished run leaves of its speed: serve.json (predicted beside measured), timeline.json and its simulation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpq import artifacts
from llmpq.simulate.run import Simulation
from llmpq.simulate.timeline import simulated_trace, stage_calls, stage_messages
from llmpq.trace import Call, Message, chrome_trace, trace_text

PHASES = ("prefill", "decode")


def write_timeline(path: Path, jobs: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> None:
    """The Chrome trace of all stages' calls and messages; time 0 is the start of the measured batch."""
    named = ("rank", "device", "first_layer")
    stages = [
        {
            **{key: job[key] for key in named},
            "layers": len(job["options"]),
            "calls": report["calls"],
            "messages": report["messages"],
        }
        for job, report in zip(jobs, reports, strict=True)
    ]
    artifacts.write_text(path, trace_text(chrome_trace(stages, reports[0]["origin_s"], other)))


def write_simulated_timeline(path: Path, plan: Mapping[str, Any], simulation: Simulation | None, other: Mapping[str, Any]) -> None:
    """The same of the simulation; without one nothing, and what another run left there is removed."""
    if simulation is None:
        path.unlink(missing_ok=True)
    else:
        artifacts.write_text(path, trace_text(simulated_trace(plan["stages"], simulation, other)))


def measured_throughput(report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and new tokens per second, from the first stage's report."""
    total = report["prefill_s"] + report["decode_s"]
    return {
        "tokens_per_s": report["tokens"] / total,
        "prefill_s": report["prefill_s"],
        "decode_s": report["decode_s"],
        "total_s": total,
    }


def stage_rows(
    plan: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], total_s: float, simulation: Simulation | None, *, priced: bool = True
) -> list[dict[str, Any]]:
    """Per stage: predicted and measured milliseconds per call and phase, seconds spent, time on its incoming link, and bytes by kind.

    Without ``priced`` the plan's own milliseconds are not what this runtime takes, and count for nothing.
    """
    simulated = stage_calls(simulation, len(reports)) if simulation else [None] * len(reports)
    links = stage_messages(simulation, len(reports)) if simulation else [None] * len(reports)
    rows = []
    for rank, (stage, report) in enumerate(zip(plan["stages"], reports, strict=True)):
        calls, messages = [Call(*row) for row in report["calls"]], [Message(*row) for row in report["messages"]]
        rows.append(
            {
                "device": stage["device"],
                "first_layer": stage["first_layer"],
                "options": stage["options"],
                "embedding_option": stage["embedding_option"],
                "head_option": stage["head_option"],
                **{phase: _phase(stage, calls, phase, plan["micro_batch"][phase], simulated[rank], priced) for phase in PHASES},
                **{key: report[key] for key in ("busy_s", "cpu_s", "process_cpu_s", "send_s", "wait_s")},
                **_shares(report["busy_s"], total_s),
                "predicted": None if simulation is None else _simulated_shares(simulation, rank),
                "link": _link(messages, links[rank]),
                "bytes": {
                    "predicted": stage["bytes"],
                    "measured": {
                        **{kind: report["bytes"][kind] for kind in ("weights", "kv", "embedding", "head", "transport")},
                        "rss_growth": report["rss_growth"],
                    },
                },
            }
        )
    return rows


def _shares(busy_s: float, total_s: float) -> dict[str, float]:
    """How much of the measured time a stage computed, and for how long it did not (its bubbles: waiting, sending, and all else)."""
    return {"utilisation": busy_s / total_s, "bubble_s": max(0.0, total_s - busy_s)}


def _simulated_shares(simulation: Simulation, rank: int) -> dict[str, float]:
    busy_s = sum(simulation.stages[phase][rank] for phase in PHASES) / 1000
    return {"busy_s": busy_s, **_shares(busy_s, simulation.total_ms / 1000)}


def _phase(
    stage: Mapping[str, Any], calls: Sequence[Call], phase: str, size: int, simulated: Sequence[Call] | None, priced: bool
) -> dict[str, Any]:
    """Calls of the plan's largest micro-batch only, for that is the one its figure is for; of the largest there was, if none had that size.

    Where the run was simulated, ``predicted_ms`` is the median of the simulated calls of that size, with their own lengths.
    """
    measured, expected = (_ms_by_rows(found, phase) for found in (calls, simulated or ()))
    rows = size if size in measured else max(measured, default=0)
    predicted = float(np.median(expected[rows])) if rows in expected else stage[f"{phase}_ms"] if priced else None
    return {"predicted_ms": predicted, **_quantiles(measured.get(rows, [])), "micro_batch": rows, "calls": len(measured.get(rows, []))}


def _ms_by_rows(calls: Sequence[Call], phase: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for call in calls:
        if call.phase == phase:
            found.setdefault(call.rows, []).append((call.end_s - call.start_s) * 1e3)
    return found


def _link(messages: Sequence[Message], simulated: Sequence[Message] | None) -> dict[str, Any]:
    """Milliseconds that messages to this stage were under way, by what they carry: of those awaited, as others lay in a buffer too."""
    found = {}
    for phase in dict.fromkeys(message.phase for message in messages):
        mine = [message for message in messages if message.phase == phase]
        awaited = [(message.taken_s - message.sent_s) * 1e3 for message in mine if message.awaited]
        expected = [(message.taken_s - message.sent_s) * 1e3 for message in simulated or () if message.phase == phase and message.awaited]
        found[phase] = {
            "messages": len(mine),
            "awaited": len(awaited),
            "predicted_ms": float(np.median(expected)) if expected else None,
            **_quantiles(awaited),
        }
    return found


def _quantiles(found: Sequence[float]) -> dict[str, Any]:
    quantiles = np.percentile(found, [10, 50, 90]).tolist() if found else [None] * 3
    return {"measured_ms": dict(zip(("p10", "p50", "p90"), quantiles, strict=True))}
