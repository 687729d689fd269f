"""The comparison as a table in the terminal: 100–120 columns, readable without colour."""

import sys
from pathlib import Path
from typing import Any, TextIO

from llmpq.report.experiment import Document
from llmpq.report.format import gap_percent, mib, number, percent

WIDTHS = (100, 120)


def show(summary: Document, page: str | Path, out: TextIO | None = None, width: int | None = None) -> None:
    """Print ``summary`` (the body of summary.json) as a table, then the verdict and where ``page`` and the MLflow UI are.

    The table takes the terminal's width within WIDTHS (``width`` overrides it); where a column per device does not fit, the fullest
    device is shown instead.
    """
    from rich.console import Console

    stream = out or sys.stdout
    console = Console(file=stream, highlight=False)
    console.width = width or (min(max(console.width, WIDTHS[0]), WIDTHS[1]) if console.is_terminal else WIDTHS[1])
    table = _table(summary, each_device=True)
    if console.measure(table, options=console.options.update(max_width=10 * WIDTHS[1])).maximum > console.width:
        table = _table(summary, each_device=False)
    console.print(table)
    console.print(f"[bold]{_escape(summary['verdict']['headline'])}[/bold]")
    for point in summary["verdict"]["points"]:
        console.print(_escape(point))
    console.print()
    console.print(f"Report page:  {_escape(str(page))}", soft_wrap=True)
    console.print("MLflow UI:    make ui", soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _table(summary: Document, each_device: bool) -> Any:
    from rich import box
    from rich.table import Table

    served, first = summary["served"], summary["strategies"][0]
    title = f"{_escape(summary['experiment'])}: {summary['source']}" + (", predicted on the second line" if served else ", predicted")
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, title=title, title_justify="left", title_style="bold"
    )
    table.add_column("strategy", no_wrap=True)
    for heading in ("tokens/s", "prefill\ns", "decode\ns", *(["error\ns"] if served else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for text in first["quality"]:
        table.add_column(f"perplexity\n{_escape(text['text'])}", justify="right", no_wrap=True)
    for heading in [f"{_escape(device['device'])}\nMiB" for device in first["bytes"]] if each_device else ["fullest\nMiB"]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("plan\ns", justify="right", no_wrap=True)
    table.add_column("gap", justify="right", no_wrap=True)
    for entry in summary["strategies"]:
        mark = "bold" if entry["strategy"] == summary["verdict"]["focus"] else None
        table.add_row(*_cells(entry, served, each_device), style=mark)
    return table


def _cells(entry: Document, served: bool, each_device: bool) -> list[str]:
    cells = [_escape(entry["strategy"]) + ("\npredicted" if served else "")]
    cells += [
        _two(number(entry[key]["measured"]), number(entry[key]["predicted"]), served) for key in ("tokens_per_s", "prefill_s", "decode_s")
    ]
    if served:
        cells.append(percent(entry["total_s"]["error_percent"], signed=True))
    cells += [f"{number(text['perplexity'])}\n± {number(text['standard_error'], 2)}" for text in entry["quality"]]
    used = [device for device in entry["bytes"] if device["predicted"] is not None]
    fullest = max(used, key=lambda device: device["predicted"] / device["budget"])
    for device in entry["bytes"] if each_device else [fullest]:
        name = "" if each_device else f"{_escape(device['device'])} "
        cells.append(_two(name + mib(device["measured"]), mib(device["predicted"]), served) if device in used else "–")
    return [*cells, number(entry["planning"]["seconds"]), gap_percent(entry["planning"]["gap"])]


def _two(measured: str, predicted: str, served: bool) -> str:
    return f"{measured}\n{predicted}" if served else predicted
