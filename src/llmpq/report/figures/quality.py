"""Speed beside quality: one picture per text, because a plan is only better if it is not merely faster."""

import re

import plotly.graph_objects as go

from llmpq.report.experiment import Document
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import number
from llmpq.report.palette import FOCUS, OTHER


def speed_quality(summary: Document) -> list[Figure]:
    """One figure per text; one row per strategy: tokens/s and perplexity with its standard error."""
    texts = [text["text"] for text in summary["strategies"][0]["quality"]]
    return [_on_text(summary, index, text) for index, text in enumerate(texts)]


def _on_text(summary: Document, index: int, text: str) -> Figure:
    rows = [
        {
            "text": text,
            "strategy": entry["strategy"],
            "focus": int(entry["strategy"] == summary["verdict"]["focus"]),
            "tokens_per_s": entry["tokens_per_s"]["measured"],
            "perplexity": entry["quality"][index]["perplexity"],
            "standard_error": entry["quality"][index]["standard_error"],
            "perplexity_low": entry["quality"][index]["perplexity_low"],
            "perplexity_high": entry["quality"][index]["perplexity_high"],
            "kl": (entry["quality"][index]["kl"] or {}).get("mean"),
            "top1": (entry["quality"][index]["top1"] or {}).get("mean"),
        }
        for entry in summary["strategies"]
    ]
    caption = (
        "Right is faster, down is better: perplexity says how surprised the model is by real text. Bars are one standard error, mostly "
        "due to the choice of text, which all strategies share: the table below compares them window by window."
    )
    return Figure(
        name=f"speed_quality_{re.sub('[^A-Za-z0-9_-]', '-', text)}",
        title=f"Speed and quality on {text}",
        caption=caption if index == 0 else "The same on another text. The best place is again the lower right corner.",
        source=f"{summary['source']} speed, measured perplexity",
        rows=rows,
        draw=_draw,
        width="half",
    )


def _draw(rows: list[Row]) -> go.Figure:
    rates, perplexities = [row["tokens_per_s"] for row in rows], [row["perplexity"] for row in rows]
    room = 0.28 * (max(rates) - min(rates)) or 0.1 * max(rates)
    figure = go.Figure()
    figure.add_scatter(
        x=rates, y=perplexities, mode="markers+text", showlegend=False, cliponaxis=False, hoverinfo="text",
        text=[label(row["strategy"]) for row in rows], textposition=_places(rows), textfont={"size": 12},
        error_y={"array": [row["standard_error"] for row in rows], "thickness": 1.5, "width": 3, "color": "#9aa3b2"},
        marker={"size": 13, "opacity": 1, "color": [FOCUS if row["focus"] else OTHER for row in rows],
                "symbol": ["diamond" if row["focus"] else "circle" for row in rows]},
        hovertext=[f"<b>{label(row['strategy'])}</b> on {label(row['text'])}<br>{number(row['tokens_per_s'])} tokens/s<br>perplexity "
                   f"{number(row['perplexity'])} ± {number(row['standard_error'], 2)}{_distance(row)}" for row in rows],
    )  # fmt: skip
    figure.update_layout(layout(
        340, margin={"l": 8, "r": 20, "t": 14, "b": 48},
        xaxis=axis(range=[min(rates) - room, max(rates) + room], nticks=6, title="tokens/s"),
        yaxis=axis(nticks=7, title="perplexity"),
    ))  # fmt: skip
    return figure


def _distance(row: Row) -> str:
    return "" if row["kl"] is None else f"<br>KL from 16 bit {number(row['kl'], 2)}"


def _places(rows: list[Row]) -> list[str]:
    """Where each name stands so that it lies off its own error bar and points away from the nearest neighbour."""
    places = []
    rates, perplexities = [row["tokens_per_s"] for row in rows], [row["perplexity"] for row in rows]
    wide, tall = (max(values) - min(values) or 1 for values in (rates, perplexities))
    for row in rows:
        near = [other for other in rows if other is not row and abs(other["perplexity"] - row["perplexity"]) < 0.12 * tall]
        offsets = [(other["tokens_per_s"] - row["tokens_per_s"], other["perplexity"] - row["perplexity"]) for other in near]
        right = any(0 <= faster < 0.4 * wide for faster, _ in offsets)
        up = any(abs(faster) < 0.3 * wide and worse < 0 for faster, worse in offsets)
        places.append(f"{'top' if up else 'bottom'} {'left' if right else 'right'}")
    return places
