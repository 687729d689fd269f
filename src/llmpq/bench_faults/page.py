"""docs/bench-faults.md: what was done to runs and what became of their requests, from the newest stored lines."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmpq import artifacts
from llmpq.bench.tables import table
from llmpq.bench_faults import record
from llmpq.bench_faults.faults import FAULTS, KILLS
from llmpq.bench_faults.growth import BLOCK_S, SETTLE_S
from llmpq.bench_faults.record import OK, SOAK, Life, Line
from llmpq.bench_faults.run import REQUEST_SETS
from llmpq.bench_faults.served import LOAD_TIMEOUT_S, REQUESTS, STAGES, TIMEOUT_S
from llmpq.bench_faults.verdict import NEAR_TIE
from llmpq.serve.launch import SLACK_S

WANTED_KILLS = 100
FLAT = 0.02  # of a process's memory, in an hour


def write_page(path: Path, lines: Iterable[Line]) -> None:
    """Write the page from the newest lines."""
    artifacts.write_text(path, page(lines))


def page(lines: Iterable[Line]) -> str:
    """Markdown: the table of faults, what did not go as it should, and the soak."""
    shown = record.newest(lines)
    runs, soaks = [line for line in shown if line.fault != SOAK], [line for line in shown if line.fault == SOAK]
    sections = {"Faults": _faults(runs), "What did not go as it should": _complaints(shown), "Soak": _soaks(soaks)}
    text = ["# Faults while serving", "", *_preface(shown), ""]
    for title, body in sections.items():
        text += [f"## {title}", "", *(body or ["Not run yet."]), ""]
    return "\n".join(text).rstrip() + "\n"


def _preface(shown: Sequence[Line]) -> list[str]:
    dates = sorted({line.date[:10] for line in shown})
    between = " to ".join(dates[:1] + dates[1:][-1:]) or "no date yet"
    loads = [line.load for line in shown]
    return [
        "Written by `make bench-faults` from docs/bench-faults.jsonl, which holds every run ever stored; this page shows the newest of "
        f"each fault, schedule and seed. {between}; machine: {_all(line.machine for line in shown)}; revision: "
        f"{_all(line.revision for line in shown)}; load before the starts: {f'{min(loads):g} to {max(loads):g}' if loads else 'none yet'}.",
        "",
        f"Each run is the command `llmpq serve` with a tiny random Llama at 8 bits over {STAGES} stages, {REQUESTS} greedy requests of "
        f"unlike length ({REQUEST_SETS} files in turn), on devices slowed down so that it lasts some seconds, timeout_s {TIMEOUT_S:g}, "
        f"load_timeout_s {LOAD_TIMEOUT_S:g}. What happens, to which stage and when is drawn by the seed: at a moment of loading or, more "
        "often, after a drawn number of finished requests. A run went as it should when the command ended as it ought to, started again by "
        "itself or by hand served the rest, and no process and no shared memory was left. Lost, duplicated and wrong are counted against "
        f"an undisturbed run; a request that parts from it where the likeliest token led by less than {NEAR_TIE:g} is a near-tie, which "
        "calls of another shape may choose otherwise.",
    ]


def _all(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values))) or "none yet"


def _faults(runs: Sequence[Line]) -> list[str]:
    if not runs:
        return []
    rows = []
    for fault in FAULTS:
        for schedule in sorted({line.schedule for line in runs}):
            group = [line for line in runs if (line.fault, line.schedule) == (fault, schedule)]
            if group:
                rows.append(_row(fault, schedule, group))
    rows.append(_row("**all**", "", runs))
    kills = [line for line in runs if line.fault in KILLS]
    count, moments = sum(line.injected for line in kills), [moment for line in kills for moment in line.moments]
    loading = sum(moment.startswith("loading") for moment in moments)
    head = (
        "fault",
        "schedule",
        "runs",
        "seeds",
        "injected",
        "requests",
        "lost",
        "duplicated",
        "wrong",
        "near-ties",
        "restarts",
        "noticed in at most s",
    )
    return [
        f"{count} kills of a stage ({WANTED_KILLS} wanted), {loading} of them while it loaded, the others while it served. A stage that "
        f"is killed has to be noticed at once, one that hangs or is cut off within timeout_s and {SLACK_S:g} s, while loading within "
        "load_timeout_s of the last news.",
        "",
        *table(head, rows),
    ]


def _row(fault: str, schedule: str, group: Sequence[Line]) -> list[str]:
    sums = [str(sum(getattr(line, key) for line in group)) for key in ("requests", "lost", "duplicated", "wrong", "near_ties", "restarts")]
    slowest = [line.reaction_s for line in group if line.reaction_s is not None]
    seeds = f"0–{max(line.seed for line in group)}" if schedule else ""
    injected = str(sum(line.injected for line in group))
    return [fault, schedule, str(len(group)), seeds, injected, *sums, f"{max(slowest):.1f}" if slowest else ""]


def _complaints(shown: Sequence[Line]) -> list[str]:
    bad = [line for line in shown if line.status != OK]
    return [f"- {line.fault}, {line.schedule}, seed {line.seed}: {' '.join(line.status.split())}" for line in bad] or ["Nothing."]


def _soaks(soaks: Sequence[Line]) -> list[str]:
    text = []
    for line in soaks:
        text += [
            f"{line.requests} requests in one run of {line.seconds / 60:.1f} min, schedule {line.schedule}, seed {line.seed}, "
            f"{line.date[:10]}, load {line.load:g}: {line.injected} kills ({', '.join(line.moments)}), {line.lost} lost, "
            f"{line.duplicated} duplicated, {line.wrong} wrong, {line.near_ties} near-ties.",
            "",
            *table(
                ("process", "lived min", "mean MiB", "slope KiB/min", "95 % interval", "growth in an hour"), map(_life, line.lives or [])
            ),
            "",
        ]
    if text:
        text += [
            f"Memory is what a process has for itself (resident without shared pages), every second, the first {SETTLE_S:g} s left out; "
            f"the slope is that of means over {BLOCK_S:g} s, the growth in an hour its upper end as a share of the memory: flat is at most "
            f"{100 * FLAT:g} %. The command itself keeps the place of every finished request in its journal, about 90 bytes each.",
        ]
    return text


def _life(life: Life) -> list[str]:
    first = [life.process, f"{life.seconds / 60:.1f}", f"{life.mean_bytes / 2**20:.1f}"]
    if life.slope is None or life.low is None or life.high is None:
        return [*first, "–", "too short", "–"]
    slope, low, high = (60 * value / 2**10 for value in (life.slope, life.low, life.high))
    grown = 3600 * life.high / life.mean_bytes
    return [*first, f"{slope:.2f}", f"{low:.2f} to {high:.2f}", f"{100 * grown:.2f} %{'' if grown <= FLAT else ', not flat'}"]
