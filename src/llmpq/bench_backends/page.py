"""docs/bench-backends.md: both backends at one plan, from the newest sitting's lines."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from llmpq import artifacts
from llmpq.bench.tables import table
from llmpq.bench_backends.record import BACKENDS, Line, newest

_HEAD = ("backend", "runs", "tokens/s", "prefill (s)", "decode (s)", "processor (s)", "load (s)", "predicted (s)", "of measured")


def write_page(path: Path, lines: Iterable[Line]) -> None:
    """Write the page from the newest sitting."""
    artifacts.write_text(path, page(lines))


def page(lines: Iterable[Line]) -> str:
    """Markdown: medians with the least and the most of each backend, and every run."""
    shown = newest(lines)
    text = ["# One plan, served by llmpq and by vLLM", ""]
    if not shown:
        return "\n".join([*text, "Not run yet: `make bench-backends`."]) + "\n"
    first, loads = shown[0], [line.load for line in shown]
    text += [
        "Written by `make bench-backends` from docs/bench-backends.jsonl, which holds every run ever stored; this page shows the newest "
        f"sitting. {first.date[:10]}; machine: {first.machine}; revision: {first.revision}; load before the starts: {min(loads):g} to "
        f"{max(loads):g}.",
        "",
        f"The plan of {first.experiment}: {first.plan}. {first.requests} requests of {first.prompt_tokens} tokens, {first.new_tokens} new "
        "ones in all, the same weights, the same cores, in turn. Medians of the runs, the least and the most in brackets; processor "
        "seconds are of all processes while they served; predicted is what the problem's tables, of a profile through vLLM, say of vLLM.",
        "",
        *table(_HEAD, [_row(backend, shown) for backend in BACKENDS if any(line.backend == backend for line in shown)]),
        "",
        "## Every run",
        "",
        *table(("round", "backend", "tokens/s", "total (s)", "processor (s)", "load before"), [_run(line) for line in shown]),
    ]
    return "\n".join(text).rstrip() + "\n"


def _row(backend: str, shown: Sequence[Line]) -> list[str]:
    own = [line for line in shown if line.backend == backend]
    predicted = [line.predicted_s for line in own if line.predicted_s is not None]
    share = f"{median(predicted) / median(line.total_s for line in own):.2f}" if predicted else ""
    spreads = [_spread([getattr(line, key) for line in own]) for key in ("tokens_per_s", "prefill_s", "decode_s", "cpu_s", "load_s")]
    return [own[-1].engine, str(len(own)), *spreads, f"{median(predicted):.2f}" if predicted else "", share]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} – {max(values):.1f})"


def _run(line: Line) -> list[str]:
    return [str(line.round), line.backend, f"{line.tokens_per_s:.1f}", f"{line.total_s:.2f}", f"{line.cpu_s:.1f}", f"{line.load:g}"]
