"""docs/bench-plan.md: what `make bench-plan` measured, with date, machine and the medians that the targets are about."""

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from llmpq.bench.planning import Result


def machine() -> str:
    """Processor, its cores, and how busy the machine was when asked."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def summary(results: Sequence[Result], gap: float) -> list[str]:
    """A sentence per solver: how many cases were proved within ``gap``, median and longest time."""
    lines = []
    for solver in dict.fromkeys(result.solver for result in results):
        own = [result for result in results if result.solver == solver]
        proved = sum(result.status == "optimal" for result in own)
        times = [result.seconds for result in own]
        spread = f"median {statistics.median(times):.1f} s, longest {max(times):.1f} s"
        lines.append(f"{solver}: {proved} of {len(own)} cases proved within {100 * gap:g} %; {spread}.")
    return lines


def write_page(path: Path, results: Sequence[Result], settings: str, before: str, gap: float) -> None:
    """Write the page; ``before`` is ``machine()`` at the start, ``settings`` says what was asked for."""
    rows = [
        "| case | mode | solver | s | CPU s | gap % | enumerated | pruned | solved | status |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        share = "–" if result.gap is None else f"{100 * result.gap:.3f}"
        counts = f"{result.enumerated} | {result.pruned} | {result.solved}"
        seconds = f"{result.seconds:.1f} | {result.cpu_seconds:.1f}"
        rows.append(f"| {result.case} | {result.mode} | {result.solver} | {seconds} | {share} | {counts} | {result.status} |")
    text = [
        "# Planning times",
        "",
        f"Measured on {datetime.date.today().isoformat()} by `make bench-plan` ({settings}); {before} before, {machine()} after. "
        "Cost tables are the catalogue's, sensitivities a stand-in (see catalogue.md). Times include the baselines of every plan.",
        "",
        *[f"- {sentence}" for sentence in summary(results, gap)],
        "",
        *rows,
        "",
    ]
    path.write_text("\n".join(text), encoding="utf-8")
