"""Why the plan looks as it does: what one layer costs under every option, on every device."""

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, category_axis, label, layout
from llmpq.report.format import by_bits, mib, number
from llmpq.report.palette import option_colour


def layer_costs(experiment: Experiment, summary: Document) -> list[Figure]:
    """Prefill and decode ms of one layer for one micro-batch of the plan in focus; one row per (device, option).

    Devices of one type have the same tables and are drawn once.
    """
    focus = next(entry for entry in summary["strategies"] if entry["strategy"] == summary["verdict"]["focus"])
    figures = []
    for phase in ("prefill", "decode"):
        size = str(focus["micro_batch"][phase])
        rows = [
            {"device": name, "option": option, "phase": phase, "micro_batch": int(size), "ms": table[f"{phase}_ms"][size],
             "resident_bytes": table["resident_bytes"]}
            for name, device in _kinds(experiment.devices).items() for option, table in device["options"].items()
        ]  # fmt: skip
        name, title, source = f"layer_{phase}", f"One layer in {phase}", f"{summary['source']} profile, fitted"
        figures.append(Figure(name, title, _caption(phase, size), source, rows, _draw, wide=False))
    return figures


def _kinds(devices: list[Document]) -> dict[str, Document]:
    """What to call each distinct device: its name, or ``T4 (4 devices)`` for several of one type."""
    kinds: dict[str, list[Document]] = {}
    for device in devices:
        kinds.setdefault(str(device.get("type", device["name"])), []).append(device)
    return {members[0]["name"] if len(members) == 1 else f"{kind} ({len(members)} devices)": members[0] for kind, members in kinds.items()}


def _caption(phase: str, size: str) -> str:
    what = "reading the prompts" if phase == "prefill" else "making one token for each request"
    text = f"Milliseconds one layer takes for {what} of a micro-batch of {size}, by weight option and device; shorter is faster."
    return text + (" The size beside it is what the layer occupies in memory." if phase == "prefill" else "")


def _draw(rows: list[Row]) -> go.Figure:
    names: list[str] = []
    marks: dict[str, int] = {}
    shown: list[tuple[int, Row]] = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = {row["option"]: row for row in rows if row["device"] == device}
        marks[device] = len(names)
        names.append("")
        for option in by_bits(list(mine)):
            shown.append((len(names), mine[option]))
            names.append(option)
    figure = go.Figure()
    figure.add_bar(
        orientation="h", y=[place for place, _ in shown], x=[row["ms"] for _, row in shown], width=0.7, showlegend=False,
        marker={"color": [option_colour(row["option"]) for _, row in shown]}, text=[_text(row) for _, row in shown], textposition="outside",
        cliponaxis=False, textfont={"size": 11}, hovertext=[_hover(row) for _, row in shown], hoverinfo="text",
    )  # fmt: skip
    for device, place in marks.items():
        text = f"<b>{label(device)}</b>"
        figure.add_annotation(x=0, xref="x", xanchor="left", y=place + 0.1, text=text, showarrow=False, font={"size": 13})
    top = max(row["ms"] for row in rows)
    room = 1.55 if rows[0]["phase"] == "prefill" else 1.25
    figure.update_layout(layout(
        60 + 25 * len(names), margin={"l": 8, "r": 14, "t": 4, "b": 44},
        xaxis=axis(range=[0, room * top], nticks=6, title="ms"), yaxis=category_axis(names),
    ))  # fmt: skip
    return figure


def _text(row: Row) -> str:
    size = f", {mib(row['resident_bytes'])} MiB" if row["phase"] == "prefill" else ""
    return f"{number(row['ms'])} ms{size}"


def _hover(row: Row) -> str:
    size = mib(row["resident_bytes"])
    return f"<b>{label(row['option'])}</b> on {label(row['device'])}<br>{row['phase']} {number(row['ms'])} ms<br>{size} MiB in memory"
