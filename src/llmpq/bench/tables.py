"""The sections of docs/bench-plan.md: sentences about the targets, and tables."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Protocol

from llmpq.bench import cases
from llmpq.bench.record import Record

# Both solvers work to tolerances of 1e-7: a gap this far above the one asked for is rounding.
ROUNDING = 1e-6
TRANSFER_S, TRANSFER_WITHIN = 2.0, 0.05


def row_of(record: Record) -> str:
    """The row of config/paper.yaml, or size: the case without the generation of its kernels."""
    return record.case.removesuffix(f"-{record.generation}")


def is_size(record: Record) -> bool:
    return cases.SIZE.fullmatch(row_of(record)) is not None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def percent(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


class Dated(Protocol):
    """What says when and where it was measured."""

    @property
    def load(self) -> float: ...

    @property
    def date(self) -> str: ...

    @property
    def revision(self) -> str: ...


def origin(record: Dated) -> list[str]:
    """Load, date and revision of a row."""
    return [f"{record.load:.1f}", record.date[:10], record.revision]


def proved(record: Record, gap: float = cases.PROVED_GAP) -> bool:
    """Whether the plan is within ``gap`` of the bound, or there is proved to be none."""
    return record.status.startswith("infeasible") or (record.gap is not None and record.gap <= gap + ROUNDING)


def planning(records: Sequence[Record]) -> list[str]:
    """Every paper row, both kinds of objective."""
    own = sorted((record for record in records if record.kind == "plan" and not is_size(record)), key=_place)
    if not own:
        return []
    sentences = [f"- {target_sentence([record for record in own if record.solver == solver], solver)}" for solver in solvers_of(own)]
    head = [
        "case",
        "mode",
        "solver",
        "s",
        "CPU s",
        "gap %",
        "enumerated",
        "pruned",
        "solved",
        "status",
        "limit s",
        "load",
        "date",
        "revision",
    ]
    note = "Times include the baselines that a plan is compared with."
    return [note, "", *sentences, "", *table(head, map(_planned, own))]


def _place(record: Record) -> tuple[str, int, str, int, str]:
    """Solver by solver, mode by mode, rows as in ``cases.ROWS``."""
    row, modes = row_of(record), list(cases.MODES)
    number = cases.ROWS.index(row) if row in cases.ROWS else len(cases.ROWS)
    mode = modes.index(record.mode) if record.mode in modes else len(modes)
    return (record.solver, mode, record.generation, number, record.case)


def _planned(record: Record) -> list[str]:
    counts = [str(count) for count in (record.enumerated, record.pruned, record.solved)]
    times = [f"{record.seconds:.1f}", f"{record.cpu_seconds:.1f}", percent(record.gap)]
    head = [record.case, record.mode, record.solver]
    return [*head, *times, *counts, _cell(record.status), f"{record.time_limit_s:g}", *origin(record)]


def _cell(text: str) -> str:
    return text.replace("|", "/")


def solvers_of(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(record.solver for record in records))


def target_sentence(own: Sequence[Record], solver: str) -> str:
    """How many of one solver's results meet the targets, and which do not."""
    met = [record for record in own if meets(record)]
    missed = [f"{row_of(record)} {record.mode}" for record in own if not meets(record)]
    seconds = statistics.median(record.seconds for record in own)
    if solver == "glpk":
        target = (
            f"proved within 0.1 % in {cases.GLPK_S:g} s, clusters 7 and 8 within {100 * cases.GLPK_HARD_GAP:g} % in {cases.GLPK_HARD_S:g} s"
        )
        median = f"median {seconds:.1f} s"
    else:
        target = f"proved within 0.1 % in {cases.HIGHS_S:g} s"
        verdict = "met" if seconds <= cases.HIGHS_MEDIAN_S else "missed"
        median = f"median {seconds:.1f} s (target {cases.HIGHS_MEDIAN_S:g} s: {verdict})"
    wanted = len(cases.ROWS) * len(cases.MODES)
    partly = "" if len(own) >= wanted else f" of {wanted} wanted"
    return f"{solver}: {len(met)} of {len(own)} measured{partly} meet the target ({target}); {median}." + (
        f" Not met: {', '.join(missed)}." if missed else ""
    )


def meets(record: Record) -> bool:
    """The target of one result of the paper's rows."""
    if record.solver != "glpk":
        return record.seconds <= cases.HIGHS_S and proved(record)
    if row_of(record) in cases.GLPK_HARD:
        return record.seconds <= cases.GLPK_HARD_S + cases.GRACE_S and proved(record, cases.GLPK_HARD_GAP)
    return record.seconds <= cases.GLPK_S and proved(record)


def growth(records: Sequence[Record], figure: str | None) -> list[str]:
    """Sizes LxN-T."""
    own = sorted((record for record in records if record.kind == "plan" and is_size(record)), key=_size)
    if not own:
        return []
    lines = [
        "L layers of OPT-66b's width (where they would not fit at 4 bit, the widest OPT that does) on N devices of T types. The gap is to "
        "a bound over all orders, micro-batches and cuts; the gap of the order is to a bound of the chosen order and micro-batches alone "
        "(16 devices and more; solved afterwards, not in the seconds). 100 %: there is no bound over all orders.",
    ]
    sentences = [f"- {row}: {_large_sentence(row, own)}" for row in cases.LARGE_TARGETS if any(row_of(record) == row for record in own)]
    lines += ["", *sentences] if sentences else []
    if figure is not None:
        lines += ["", f"![Planning time against layers and devices]({figure})"]
    head = ["size", "mode", "solver", "s", "CPU s", "gap %", "gap of the order %", "status", "limit s", "load", "date", "revision"]
    rows = [
        [row_of(record), record.mode, record.solver, f"{record.seconds:.1f}", f"{record.cpu_seconds:.1f}", percent(record.gap),
         percent(record.order_gap), _cell(record.status), f"{record.time_limit_s:g}", *origin(record)]
        for record in own
    ]  # fmt: skip
    return [*lines, "", *table(head, rows)]


def _size(record: Record) -> tuple[str, str, int, int]:
    layers, rest = row_of(record).split("x")
    return (record.solver, record.mode, int(rest.split("-")[0]), int(layers))


def _large_sentence(row: str, own: Sequence[Record]) -> str:
    seconds, gap = cases.LARGE_TARGETS[row]
    found = [record for record in own if row_of(record) == row]
    states = [
        f"{record.solver}, {record.mode}: {percent(record.gap, 2)} % in {record.seconds:.0f} s, "
        f"{'met' if proved(record, gap) and record.seconds <= seconds + cases.GRACE_S else 'missed'}"
        for record in found
    ]
    return f"target at most {100 * gap:g} % in {seconds:g} s; {'; '.join(states)}."


def transfer(records: Sequence[Record]) -> list[str]:
    """llmpq-transfer: seconds, and how far above the exact search's plan and bound."""
    own = [record for record in records if record.kind == "transfer"]
    if not own:
        return []
    found = [(record, *distances(record, records)) for record in own]
    slow = [f"{row_of(record)} {record.mode} ({record.seconds:.1f} s)" for record in own if record.seconds > TRANSFER_S]
    far = [
        f"{row_of(record)} {record.mode} ({percent(above, 1)} %)"
        for record, above, _ in found
        if above is not None and above > TRANSFER_WITHIN
    ]
    known = sum(above is not None for _, above, _ in found)
    lines = [
        f"- At most {TRANSFER_S:g} s: {len(own) - len(slow)} of {len(own)}." + (f" Not: {', '.join(slow)}." if slow else ""),
        f"- Within {100 * TRANSFER_WITHIN:g} % of the exact search's objective: {known - len(far)} of the {known} whose exact objective is "
        "known." + (f" Not: {', '.join(far)}." if far else ""),
        "- Seconds are those of `llmpq plan --strategy llmpq-transfer`, reading of files aside. Distances are to the best plan and the "
        "best bound stored for the same problem, whatever solver found them; – where the exact search was not measured on it.",
    ]
    head = ["case", "mode", "s", "CPU s", "above the exact plan %", "above its bound %", "status", "load", "date", "revision"]
    rows = [
        [record.case, record.mode, f"{record.seconds:.1f}", f"{record.cpu_seconds:.1f}", percent(above, 2), percent(bound, 2),
         _cell(record.status), *origin(record)]
        for record, above, bound in found
    ]  # fmt: skip
    return [*lines, "", *table(head, rows)]


def distances(record: Record, records: Sequence[Record]) -> tuple[float | None, float | None]:
    """(relative distance to the best plan of the exact search on the same problem, to its best bound); None where unknown."""
    exact = [other for other in records if other.kind == "plan" and other.problem == record.problem]
    best = min((other.objective_ms for other in exact if other.objective_ms is not None), default=None)
    bound = max((other.bound_ms for other in exact if other.bound_ms is not None), default=None)
    own = record.objective_ms
    if own is None:
        return None, None
    return (None if best is None else own / best - 1, None if not bound else own / bound - 1)
