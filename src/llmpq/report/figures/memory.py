"""Memory: what each plan puts on each device, against what the device allows."""

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import MIB, mib
from llmpq.report.palette import BYTE_KINDS

_NAMES = {"weights": "weights", "kv": "KV cache", "embedding": "embedding", "head": "head", "workspace": "workspace"}
ROOM = 1.5  # rows of one unit each that a device takes beside its strategies: its heading and a gap


def device_bytes(experiment: Experiment, summary: Document) -> Figure:
    """One row per (device, strategy): predicted bytes by kind, the device's budget, and measured bytes where the plan was served."""
    rows: list[Row] = []
    for device in experiment.devices:
        for run in experiment.runs:
            stage = next((stage for stage in run.plan["stages"] if stage["device"] == device["name"]), None)
            served = next((stage for stage in (run.serve or {"stages": []})["stages"] if stage["device"] == device["name"]), None)
            measured = served["bytes"]["measured"] if served else {}
            row: Row = {"device": device["name"], "budget_bytes": device["memory_bytes"], "strategy": run.strategy}
            row["used"] = int(stage is not None)
            row |= {f"predicted_{kind}_bytes": stage["bytes"][kind] if stage else 0 for kind in BYTE_KINDS}
            row |= {f"measured_{kind}_bytes": measured.get(kind) for kind in ("weights", "kv", "embedding", "head")}
            rows.append({**row, "measured_growth_bytes": measured.get("rss_growth")})
    measured_words = (
        " The ring is what the serving process really grew by, scratch of its libraries included, for which the device keeps a reserve."
        if summary["served"]
        else ""
    )
    return Figure(
        name="memory",
        title="Memory on each device",
        caption=(
            "What each plan puts on a device, and the line it must not cross: the device's budget. The KV cache keeps what the model has "
            f"read so far, workspace is scratch memory of one micro-batch.{measured_words}"
        ),
        source=f"predicted bytes; {summary['source']} growth" if summary["served"] else summary["source"],
        rows=rows,
        draw=_draw,
    )


def _draw(rows: list[Row]) -> go.Figure:
    devices = list(dict.fromkeys(row["device"] for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    block = len(strategies) + ROOM
    figure = go.Figure()
    at = {(row["device"], row["strategy"]): devices.index(row["device"]) * block + strategies.index(row["strategy"]) + 1 for row in rows}
    heights = [at[row["device"], row["strategy"]] for row in rows]
    base = [0.0] * len(rows)
    for kind, colour in BYTE_KINDS.items():
        values = [row[f"predicted_{kind}_bytes"] for row in rows]
        figure.add_bar(
            orientation="h", x=[value / MIB for value in values], base=[start / MIB for start in base], y=heights, width=0.66,
            name=_NAMES[kind], marker={"color": colour}, hoverinfo="text", hovertext=[_hover(row, kind) for row in rows],
        )  # fmt: skip
        base = [start + value for start, value in zip(base, values, strict=True)]
    measured = [(height, row) for height, row in zip(heights, rows, strict=True) if row["measured_growth_bytes"] is not None]
    if measured:
        figure.add_scatter(
            x=[row["measured_growth_bytes"] / MIB for _, row in measured], y=[height for height, _ in measured], mode="markers",
            name="measured growth", marker={"symbol": "circle-open", "size": 12, "color": "#d0342c", "line": {"width": 2.5}},
            hoverinfo="text", hovertext=[_hover(row, "") for _, row in measured], cliponaxis=False,
        )  # fmt: skip
    for index, device in enumerate(devices):
        _mark_device(figure, device, next(row["budget_bytes"] for row in rows if row["device"] == device), index * block, len(strategies))
    top = max(max(row["budget_bytes"], row["measured_growth_bytes"] or 0, total) for row, total in zip(rows, base, strict=True))
    figure.update_layout(layout(
        max(280, 96 + round(27 * block * len(devices))), barmode="overlay", margin={"l": 8, "r": 20, "t": 34, "b": 44},
        xaxis=axis(range=[0, 1.06 * top / MIB], title="MiB", nticks=7),
        yaxis=axis(range=[block * len(devices) - 0.4, -0.5], showgrid=False, tickmode="array", ticklabelstandoff=6, tickvals=heights,
                   ticktext=[label(row["strategy"]) + ("" if row["used"] else " (not used)") for row in rows]),
    ))  # fmt: skip
    return figure


def _mark_device(figure: go.Figure, device: str, budget: float, top: float, strategies: int) -> None:
    text = f"<b>{label(device)}</b>  ·  budget {mib(budget)} MiB"
    figure.add_annotation(x=0, xref="x", xanchor="left", y=top + 0.25, text=text, showarrow=False, font={"size": 13})
    line = {"color": "#d0342c", "width": 2, "dash": "dot"}
    figure.add_shape(type="line", x0=budget / MIB, x1=budget / MIB, y0=top + 0.5, y1=top + strategies + 0.5, line=line)


def _hover(row: Row, kind: str) -> str:
    total = sum(row[f"predicted_{name}_bytes"] for name in BYTE_KINDS)
    lines = [f"<b>{label(row['strategy'])}</b> on {label(row['device'])}"]
    if kind:
        lines.append(f"{_NAMES[kind]}: {mib(row[f'predicted_{kind}_bytes'])} MiB predicted")
        if row.get(f"measured_{kind}_bytes") is not None:
            lines.append(f"{_NAMES[kind]}: {mib(row[f'measured_{kind}_bytes'])} MiB measured")
    lines.append(f"all together {mib(total)} of {mib(row['budget_bytes'])} MiB")
    if row["measured_growth_bytes"] is not None:
        lines.append(f"the process grew by {mib(row['measured_growth_bytes'])} MiB")
    return "<br>".join(lines)
