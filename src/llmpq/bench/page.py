"""docs/bench-plan.md: the newest stored measurement of everything, beside the targets, with date, revision and load of each."""

from collections.abc import Sequence
from pathlib import Path

from llmpq import artifacts
from llmpq.bench import tables, textbook_table
from llmpq.bench.record import Record

FIGURE = "images/bench-plan-curve.svg"
# Above this load others were at work too.
BUSY = 1.3


def write_page(path: Path, records: Sequence[Record]) -> None:
    """Write the page from the newest record of each measurement."""
    artifacts.write_text(path, page(records, figure=(path.parent / FIGURE).is_file()))


def page(records: Sequence[Record], figure: bool = False) -> str:
    """Markdown; a section for each kind that was measured. ``figure``: FIGURE is there."""
    sections = [
        ("Planning", tables.planning(records)),
        ("Growth with layers and devices", tables.growth(records, FIGURE if figure else None)),
        ("The textbook form beside it", textbook_table.textbook(records)),
        ("llmpq-transfer", tables.transfer(records)),
    ]
    lines = ["# Planning times", "", *_preface(records), ""]
    for title, body in sections:
        lines += [f"## {title}", "", *(body or ["Not measured yet."]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _preface(records: Sequence[Record]) -> list[str]:
    machines = sorted({record.machine for record in records})
    busy = sum(record.load > BUSY for record in records)
    return [
        "Written by `make bench-plan` from docs/bench-plan.jsonl, which holds every result ever stored; this page shows the newest of "
        f"each. Machine: {'; '.join(machines) or 'none yet'}. Costs are the catalogue's, sensitivities a stand-in (see catalogue.md).",
        "",
        f"Load is the machine's one-minute average before each start; the bench itself makes it 1. {busy} of the {len(records)} results "
        f"shown were taken above {BUSY:g}, that is while other work shared the machine: their seconds are too long by an unknown amount, "
        "and a limit of 60 s allowed less than 60 s of work; processor seconds (CPU s) suffer less.",
    ]
