"""Records of measurements that never took place."""

from typing import Any

from llmpq.bench.record import Form, Record


def made(**changes: Any) -> Record:
    """A search of cluster 3 proved in 5 s; ``changes`` are fields of Record."""
    given = {
        "kind": "plan", "date": "2026-11-22T10:00:00+00:00", "revision": "abc", "code": "c0de", "machine": "a machine", "load": 1.0,
        "generation": "2023", "problem": "p3", "time_limit_s": 30.0, "gap_requested": 1e-3, "case": "paper-3-2023",
        "mode": "theta", "solver": "highs", "status": "optimal", "seconds": 5.0, "cpu_seconds": 4.0, "gap": 1e-3, "objective_ms": 1000.0,
        "bound_ms": 999.0, "enumerated": 700, "pruned": 690, "solved": 10,
    }  # fmt: skip
    return Record(**{**given, **changes})


def textbook_line(draw: int, seconds: float, status: str = "optimal", **changes: Any) -> Record:
    """One drawn candidate; its counts form was proved in a tenth of the time."""
    counts = Form("optimal", seconds / 10, seconds / 10, 1000.0, 999.5)
    return made(
        kind="textbook",
        draw=draw,
        seed=0,
        seconds=seconds,
        cpu_seconds=seconds / 2,
        status=status,
        time_limit_s=60.0,
        counts=counts,
        **changes,
    )
