"""How much faster llmpq's plan is, experiment by experiment, as one picture."""

import plotly.graph_objects as go

from llmpq.report.figures.base import Figure, Row, axis, category_axis, label, layout
from llmpq.report.format import number
from llmpq.report.palette import FOCUS, OTHER
from llmpq.suites.members import AS_PUBLISHED, TUNED, Member

_KINDS = {"tuned": (TUNED, FOCUS, "circle"), "as published": (AS_PUBLISHED, OTHER, "diamond")}


def speedups(members: list[Member]) -> Figure | None:
    """One row per experiment and kind of baseline; None where nothing can be compared."""
    rows: list[Row] = []
    for member in members:
        for kind, (strategies, _, _) in _KINDS.items():
            ratio, best = member.speedup(strategies), member.best(strategies)
            if ratio is not None and best is not None:
                row = {"experiment": member.name, "baselines": kind, "best": best.strategy, "speedup": ratio}
                rows.append({**row, "source": member.summary["source"]})
    if not rows:
        return None
    sources = sorted({row["source"] for row in rows})
    return Figure(
        name="speedups",
        title="Speed-up over the best baseline",
        caption=(
            "llmpq's tokens/s over those of the fastest baseline that keeps the quality asked for. Circles: baselines that have the device "
            "order and micro-batches that suit them best; diamonds: as published, in the order in which the devices are given. Left of the "
            "line llmpq is slower."
        ),
        source=" and ".join(sources),
        rows=rows,
        draw=_draw,
    )


def _draw(rows: list[Row]) -> go.Figure:
    names = list(dict.fromkeys(row["experiment"] for row in rows))
    figure = go.Figure()
    for kind, (_, colour, symbol) in _KINDS.items():
        mine = [row for row in rows if row["baselines"] == kind]
        figure.add_scatter(
            x=[row["speedup"] for row in mine], y=[names.index(row["experiment"]) for row in mine], mode="markers", name=kind,
            hoverinfo="text", cliponaxis=False, marker={"size": 11, "color": colour, "symbol": symbol},
            hovertext=[f"<b>{label(row['experiment'])}</b><br>{number(row['speedup'])}× the speed of {label(row['best'])}" for row in mine],
        )  # fmt: skip
    low, high = min(0.95, *(row["speedup"] for row in rows)), max(1.25, *(row["speedup"] for row in rows))
    figure.add_vline(x=1, line={"color": OTHER, "width": 1.5})
    figure.update_layout(layout(
        110 + 26 * len(names),
        xaxis=axis(range=[low - 0.02 * (high - low), high + 0.04 * (high - low)], ticksuffix="×", nticks=6, title="speed-up"),
        yaxis=category_axis(names),
    ))  # fmt: skip
    return figure
