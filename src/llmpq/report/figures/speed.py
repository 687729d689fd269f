"""How fast each strategy was: tokens per second, time by phase, and speed beside quality."""

import plotly.graph_objects as go

from llmpq.report.experiment import Document
from llmpq.report.figures.base import Figure, Row, axis, category_axis, label, layout
from llmpq.report.format import number
from llmpq.report.palette import FOCUS, OTHER, PAGE_INK, PHASE_COLOURS
from llmpq.report.verdict import how

HALF = 0.34  # thickness of one of the two bars (measured, predicted) of a strategy


def throughput(summary: Document) -> Figure:
    """One row per strategy: measured and predicted tokens/s."""
    focus = summary["verdict"]["focus"]
    rows = [
        {
            "strategy": entry["strategy"],
            "focus": int(entry["strategy"] == focus),
            "measured_tokens_per_s": entry["tokens_per_s"]["measured"],
            "predicted_tokens_per_s": entry["tokens_per_s"]["predicted"],
        }
        for entry in summary["strategies"]
    ]
    what = {
        "measured": "Full bars were measured, the pale ones below were predicted by the plan.",
        "simulated": "By event simulation of the plans; nothing was measured.",
        "predicted": "Predicted by the plans.",
    }[how(summary)]
    return Figure(
        name="throughput",
        title="New tokens per second",
        caption=f"Longer is faster. {what} Counted over the whole batch, prefill included.",
        source=summary["source"],
        rows=rows,
        draw=_draw_throughput,
        width="half",
    )


def _draw_throughput(rows: list[Row]) -> go.Figure:
    figure = go.Figure()
    served = any(row["measured_tokens_per_s"] is not None for row in rows)
    colours = [FOCUS if row["focus"] else OTHER for row in rows]
    both = (("measured", -HALF / 2, 1.0), ("predicted", HALF / 2, 0.4))
    for side, offset, opacity in both if served else (("predicted", 0.0, 1.0),):
        values = [row[f"{side}_tokens_per_s"] for row in rows]
        figure.add_bar(
            orientation="h", x=values, y=[index + offset for index in range(len(rows))], width=HALF, name=side, showlegend=False,
            marker={"color": colours, "opacity": opacity}, text=[number(value) for value in values], textposition="outside",
            cliponaxis=False, textfont={"size": 12}, hoverinfo="text",
            hovertext=[f"<b>{label(row['strategy'])}</b><br>{side} {number(row[f'{side}_tokens_per_s'])} tokens/s" for row in rows],
        )  # fmt: skip
    top = max(row[f"{side}_tokens_per_s"] or 0 for row in rows for side in ("measured", "predicted"))
    figure.update_layout(layout(
        60 + 58 * len(rows), barmode="overlay", margin={"l": 8, "r": 20, "t": 10, "b": 44},
        xaxis=axis(range=[0, top * 1.14], title="tokens/s", nticks=6),
        yaxis=category_axis([row["strategy"] for row in rows]),
    ))  # fmt: skip
    return figure


def phases(summary: Document) -> Figure:
    """One row per (strategy, side): prefill and decode seconds."""
    sides = ("measured", "predicted") if summary["served"] else ("predicted",)
    rows = [
        {"strategy": entry["strategy"], "side": side, "prefill_s": entry["prefill_s"][side], "decode_s": entry["decode_s"][side]}
        for entry in summary["strategies"]
        for side in sides
    ]
    return Figure(
        name="phases",
        title="Where the time goes",
        caption=(
            "Shorter is faster. Prefill reads all prompts at once and is limited by arithmetic; decode makes one token after the other "
            "and is limited by how fast weights come out of memory. A good plan has to serve both."
            + (" Full: measured; pale: predicted." if summary["served"] else "")
        ),
        source=summary["source"],
        rows=rows,
        draw=_draw_phases,
        width="half",
    )


def _draw_phases(rows: list[Row]) -> go.Figure:
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    sides = list(dict.fromkeys(row["side"] for row in rows))
    figure = go.Figure()
    for side in sides:
        mine = [row for row in rows if row["side"] == side]
        offset = 0.0 if len(sides) == 1 else (-HALF / 2 if side == "measured" else HALF / 2)
        base = [0.0] * len(mine)
        for phase in ("prefill", "decode"):
            values = [row[f"{phase}_s"] for row in mine]
            figure.add_bar(
                orientation="h", x=values, base=base, y=[strategies.index(row["strategy"]) + offset for row in mine], width=HALF,
                name=phase, legendgroup=phase, showlegend=side == sides[0], hoverinfo="text", textposition="inside", textangle=0,
                insidetextanchor="middle", text=[f"{number(value)} s" for value in values],
                insidetextfont={"color": "#10131a" if side == sides[0] else PAGE_INK, "size": 11},
                marker={"color": PHASE_COLOURS[phase], "opacity": 1.0 if side == sides[0] else 0.45},
                hovertext=[f"<b>{label(row['strategy'])}</b><br>{phase} {side} {number(row[f'{phase}_s'])} s" for row in mine],
            )  # fmt: skip
            base = [start + value for start, value in zip(base, values, strict=True)]
    figure.update_layout(layout(
        84 + 58 * len(strategies), barmode="overlay", uniformtext={"mode": "hide", "minsize": 9},
        xaxis=axis(rangemode="tozero", title="seconds for the whole batch", nticks=6),
        yaxis=category_axis(strategies),
    ))  # fmt: skip
    return figure
