"""Why the plan looks as it does: what one layer costs under every option, on every device."""

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, category_axis, label, layout
from llmpq.report.format import MIB, by_bits, number
from llmpq.report.palette import option_colour

_TIMES = {"prefill": "reading the prompts", "decode": "making one token for each request"}


def layer_costs(experiment: Experiment, summary: Document) -> list[Figure]:
    """Prefill ms, decode ms (one micro-batch of the plan in focus) and resident bytes of one layer; one row per (device, option).

    Devices of one type have the same tables and are drawn once.
    """
    focus = next(entry for entry in summary["strategies"] if entry["strategy"] == summary["verdict"]["focus"])
    kinds = _kinds(experiment.devices)
    figures = []
    for phase, what in _TIMES.items():
        size = focus["micro_batch"][phase]
        rows = [
            {"device": name, "option": option, "micro_batch": size, f"{phase}_ms": table[f"{phase}_ms"][str(size)]}
            for name, device in kinds.items() for option, table in device["options"].items()
        ]  # fmt: skip
        caption = f"Time one layer takes for {what} of a micro-batch of {size}, by weight option and device; shorter is faster."
        source = f"{summary['source']} profile, fitted"
        figures.append(Figure(f"layer_{phase}", f"One layer in {phase}", caption, source, rows, _draw, width="third"))
    rows = [
        {"device": name, "option": option, "resident_bytes": table["resident_bytes"]}
        for name, device in kinds.items() for option, table in device["options"].items()
    ]  # fmt: skip
    caption = "What one layer occupies while serving, after the kernel's own packing; its KV cache comes on top, the same for all options."
    return [*figures, Figure("layer_memory", "One layer in memory", caption, "computed", rows, _draw, width="third")]


def _kinds(devices: list[Document]) -> dict[str, Document]:
    """What to call each distinct device: its name, or ``T4 (4 devices)`` for several of one type."""
    kinds: dict[str, list[Document]] = {}
    for device in devices:
        kinds.setdefault(str(device.get("type", device["name"])), []).append(device)
    return {members[0]["name"] if len(members) == 1 else f"{kind} ({len(members)} devices)": members[0] for kind, members in kinds.items()}


def _draw(rows: list[Row]) -> go.Figure:
    unit = "MiB" if "resident_bytes" in rows[0] else "ms"
    names: list[str] = []
    headings: dict[str, int] = {}
    shown: list[tuple[int, Row]] = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = {row["option"]: row for row in rows if row["device"] == device}
        headings[device] = len(names)
        names.append("")
        for option in by_bits(list(mine)):
            shown.append((len(names), mine[option]))
            names.append(option)
    figure = go.Figure()
    figure.add_bar(
        orientation="h", y=[place for place, _ in shown], x=[_value(row) for _, row in shown], width=0.7, showlegend=False,
        marker={"color": [option_colour(row["option"]) for _, row in shown]}, text=[number(_value(row)) for _, row in shown],
        textposition="outside", cliponaxis=False, textfont={"size": 11}, hoverinfo="text",
        hovertext=[f"<b>{label(row['option'])}</b> on {label(row['device'])}<br>{number(_value(row))} {unit}" for _, row in shown],
    )  # fmt: skip
    for device, place in headings.items():
        text = f"<b>{label(device)}</b>"
        figure.add_annotation(x=0, xref="x", xanchor="left", y=place + 0.1, text=text, showarrow=False, font={"size": 13})
    figure.update_layout(layout(
        60 + 25 * len(names), margin={"l": 8, "r": 20, "t": 4, "b": 44},
        xaxis=axis(range=[0, 1.25 * max(_value(row) for row in rows)], nticks=5, title=unit), yaxis=category_axis(names),
    ))  # fmt: skip
    return figure


def _value(row: Row) -> float:
    """The row's one quantity in the unit that is drawn."""
    if "resident_bytes" in row:
        return float(row["resident_bytes"]) / MIB
    return float(row["prefill_ms"] if "prefill_ms" in row else row["decode_ms"])
