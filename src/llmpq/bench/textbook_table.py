"""The textbook section of docs/bench-plan.md: both forms of the drawn candidates, and the full search extrapolated."""

import statistics
from collections.abc import Iterable, Sequence

from llmpq.bench.record import Record
from llmpq.bench.tables import percent, proved, solvers_of, table
from llmpq.bench.textbook import extrapolated_s

RATIO = 20.0  # aim: so many times the seconds of our search
DRAWS = 20  # candidates per row that the comparison is meant to rest on
EARLY = 0.9  # of the limit: what ends before that, unsolved, was not cut short
ENDINGS = ("optimal", "infeasible", "feasible", "none")
ENDING_WORDS = ("solved", "proved to have no plan", "with a plan but no proof", "with no plan found")


def textbook(records: Sequence[Record]) -> list[str]:
    """One program per candidate without bounds, on the same solver, beside the counts form and the search."""
    own = [record for record in records if record.kind == "textbook"]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in own:
        groups.setdefault((record.solver, record.problem), []).append(record)
    if not groups:
        return []
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in own if record.seed is not None}))
    few = sum(len(group) < min(DRAWS, group[0].enumerated) for group in groups.values())
    lines = [
        f"Candidates (device order and micro-batches) drawn at random (seed {seeds}), each solved whole in the textbook form and in the "
        "counts form, nothing known beforehand, gap 0.1 %; seconds of building and solving, the solver limited as stated. Endings: how "
        "many were solved / proved to have no plan / ended with a plan but no proof / ended with neither.",
        "",
        "The textbook form's full search is extrapolated: mean seconds × number of candidates, never run; ≥ where a limit cut some short. "
        f"The ratio is to the measured seconds of our search, whole (aim with HiGHS: {RATIO:g}); a search that did not prove its "
        "gap within its limit says so. CPU: the same in processor seconds, which other work on the machine disturbs less.",
    ]
    lines += ["", *(f"- {solver}: {form_sentence([record for record in own if record.solver == solver])}" for solver in solvers_of(own))]
    lines += ["", agreement(own)]
    if few:
        lines += ["", f"{few} of {len(groups)} rows rest on fewer than {DRAWS} candidates: a first impression, no more."]
    head = [
        "case", "mode", "solver", "drawn", "limit s", "textbook median s", "max s", "endings", "counts median s",
        "max s", "endings", "candidates", "full search, extrapolated", "our search", "ratio", "load", "date", "revision",
    ]  # fmt: skip
    return [*lines, "", *table(head, (_drawn_row(group, records) for group in groups.values()))]


def _drawn_row(group: Sequence[Record], records: Sequence[Record]) -> list[str]:
    first, last = group[0], max(group, key=lambda record: record.date)
    seconds = [record.seconds for record in group]
    forms = [record.counts for record in group if record.counts is not None]
    total, work = (extrapolated_s(times, first.enumerated) for times in (seconds, [record.cpu_seconds for record in group]))
    least = "≥ " if any(record.status not in ENDINGS[:2] for record in group) else ""
    ours = next(
        (record for record in records if (record.kind, record.problem, record.solver) == ("plan", first.problem, first.solver)), None
    )
    search = "–" if ours is None else f"{ours.seconds:.1f} s" + ("" if proved(ours) else f", not proved ({percent(ours.gap, 1)} %)")
    loads = [record.load for record in group]
    return [
        first.case, first.mode, first.solver, str(len(group)), f"{first.time_limit_s:g}",
        f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}", endings(record.status for record in group),
        f"{statistics.median(form.seconds for form in forms):.1f}", f"{max(form.seconds for form in forms):.1f}",
        endings(form.status for form in forms), str(first.enumerated), f"{least}{duration(total)} (CPU {duration(work)})", search,
        "–" if ours is None else f"{least}{total / ours.seconds:,.0f} (CPU {work / ours.cpu_seconds:,.0f})",
        f"{min(loads):.1f}–{max(loads):.1f}", last.date[:10], last.revision,
    ]  # fmt: skip


def form_sentence(own: Sequence[Record]) -> str:
    """How the programs of one solver ended, form by form."""
    forms = {"textbook form": [record.status for record in own], "counts form": [record.counts.status for record in own if record.counts]}
    parts = []
    for name, statuses in forms.items():
        words = zip(counted(statuses), ENDING_WORDS, strict=True)
        parts.append(f"{name} {', '.join(f'{count} {word}' for count, word in words)}")
    early = sum(record.status not in ENDINGS and record.seconds < EARLY * record.time_limit_s for record in own)
    trouble = f" {early} textbook programs ended before the limit with neither: the solver gave up, its simplex in numerical trouble."
    return f"{len(own)} candidates: {'; '.join(parts)}.{trouble if early else ''}"


def agreement(own: Iterable[Record]) -> str:
    """How far the objectives of the two forms are apart where both were solved."""
    pairs = [(record.objective_ms, record.counts.objective_ms) for record in own if record.counts is not None
             and record.status == record.counts.status == "optimal"]  # fmt: skip
    apart = max((abs(a - b) / max(a, b) for a, b in pairs if a is not None and b is not None), default=0.0)
    return f"Both forms were solved {len(pairs)} times; their objectives then differ by {percent(apart)} % at most."


def counted(statuses: Sequence[str]) -> list[int]:
    """How many of each of ENDINGS; any other status ended with neither plan nor proof."""
    found = [status if status in ENDINGS else "none" for status in statuses]
    return [found.count(name) for name in ENDINGS]


def endings(statuses: Iterable[str]) -> str:
    """``counted`` in a cell."""
    return " / ".join(map(str, counted(list(statuses))))


def duration(seconds: float) -> str:
    """In the unit that reads best."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
