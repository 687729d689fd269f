"""What a finished run leaves of its speed: serve.json (predicted beside measured) and timeline.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmpq import artifacts
from llmpq.serve.timeline import Call, chrome_trace

PHASES = ("prefill", "decode")


def write_timeline(path: Path, jobs: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> None:
    """The Chrome trace of all stages' calls; time 0 is the start of the measured batch."""
    stages = [
        {**{key: job[key] for key in ("rank", "device", "first_layer")}, "layers": len(job["options"]), "calls": report["calls"]}
        for job, report in zip(jobs, reports, strict=True)
    ]
    trace = chrome_trace(stages, reports[0]["origin_s"], other)
    artifacts.write_text(path, json.dumps(trace, separators=(",", ":"), allow_nan=False) + "\n")


def throughput(plan: Mapping[str, Any], report: Mapping[str, Any], share: float | None) -> dict[str, Any]:
    """Measured beside predicted seconds and new tokens per second.

    ``share`` is the part of the workload's requests that this run served: the plan prices all of them, a run that continues an earlier
    one is compared with that part of the prediction. Requests that are not the plan's own are compared with its pace: ``pace_share``. It is
    None where the plan priced another schedule: then nothing is predicted.
    """
    keys = ("prefill_s", "decode_s", "total_s")
    predicted = {key: None if share is None else plan["predicted"][key] * share for key in keys}
    total = report["prefill_s"] + report["decode_s"]
    return {
        "measured": {
            "tokens_per_s": report["tokens"] / total,
            "prefill_s": report["prefill_s"],
            "decode_s": report["decode_s"],
            "total_s": total,
        },
        "predicted": {"tokens_per_s": None if share is None else plan["predicted"]["tokens_per_s"], **predicted},
    }


def pace_share(plan: Mapping[str, Any], tokens: int) -> float:
    """The part of the plan's own workload that makes as many new ``tokens``; all of it where the plan does not say how many it makes."""
    per_second = plan["predicted"]["tokens_per_s"]
    return tokens / (per_second * plan["predicted"]["total_s"]) if per_second else 1.0


def stage_rows(plan: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], total_s: float) -> list[dict[str, Any]]:
    """Per stage: predicted and measured milliseconds per call and phase, seconds spent, and bytes by kind."""
    rows = []
    for stage, report in zip(plan["stages"], reports, strict=True):
        calls = [Call(*row) for row in report["calls"]]
        rows.append(
            {
                "device": stage["device"],
                "first_layer": stage["first_layer"],
                "options": stage["options"],
                "embedding_option": stage["embedding_option"],
                "head_option": stage["head_option"],
                **{phase: _phase(stage, calls, phase, plan["micro_batch"][phase]) for phase in PHASES},
                **{key: report[key] for key in ("busy_s", "cpu_s", "process_cpu_s", "send_s", "wait_s")},
                "utilisation": report["busy_s"] / total_s,
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


def _phase(stage: Mapping[str, Any], calls: Sequence[Call], phase: str, size: int) -> dict[str, Any]:
    """Calls of the largest micro-batch only, for that is the one the plan's figure is for; all calls when there was none of that size."""
    all_ms: dict[int, list[float]] = {}
    for call in calls:
        if call.phase == phase:
            all_ms.setdefault(call.rows, []).append((call.end_s - call.start_s) * 1e3)
    rows = size if size in all_ms else max(all_ms, default=0)
    found = all_ms.get(rows, [])
    quantiles = np.percentile(found, [10, 50, 90]).tolist() if found else [None] * 3
    return {
        "predicted_ms": stage[f"{phase}_ms"],
        "measured_ms": dict(zip(("p10", "p50", "p90"), quantiles, strict=True)),
        "micro_batch": rows,
        "calls": len(found),
    }
