"""Lines of measurements that never took place."""

from typing import Any

from llmpq.bench_serve.record import Case, Line

CONTEST = Case(2, 1, 16, 16, 128, 64)  # 1,024 new tokens


def made(system: str = "llmpq 16", **changes: Any) -> Line:
    """One round of the contest in 8 s: 128 new tokens/s; ``changes`` are fields of Line."""
    given = {
        "part": "peers", "date": "2026-11-23T10:00:00+00:00", "revision": "abc", "code": "c0de", "machine": "a machine", "load": 1.0,
        "what": "", "case": CONTEST, "round": 0, "status": "ok", "seconds": 8.0, "prefill_s": 3.0, "decode_s": 5.0, "cpu_s": 15.0,
        "load_s": 4.0, "peaks": [600_000_000], "same_tokens": 1.0,
    }  # fmt: skip
    return Line(system=system, **{**given, **changes})


def rounds(system: str, seconds: list[float], **changes: Any) -> list[Line]:
    """A round for each of ``seconds``."""
    return [made(system, seconds=value, round=number, **changes) for number, value in enumerate(seconds)]


def valued(part: str, system: str, value: float, **changes: Any) -> Line:
    """A rate or a perplexity."""
    nothing = dict.fromkeys(("seconds", "prefill_s", "decode_s", "cpu_s", "load_s", "peaks", "same_tokens"))
    return made(system, **{**nothing, "part": part, "value": value, "case": Case(), **changes})
