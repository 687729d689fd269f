"""How close the plan's prediction came: every stage and phase, and the whole batch."""

import math

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, category_axis, label, layout
from llmpq.report.format import number, percent
from llmpq.report.palette import OTHER, PHASE_COLOURS

WHOLE = "whole batch"
_COLOURS = {**PHASE_COLOURS, WHOLE: OTHER}
BAND = 0.10  # the shaded band around the diagonal


def _rows(experiment: Experiment, summary: Document) -> list[Row]:
    """One row per (strategy, stage, phase): ms of one micro-batch on one stage, median with p10 and p90; then the batch's phases."""
    rows: list[Row] = []
    for run, entry in zip(experiment.runs, summary["strategies"], strict=True):
        for index, stage in enumerate((run.serve or {"stages": []})["stages"]):
            for phase in ("prefill", "decode"):
                if stage[phase]["measured_ms"]["p50"] is not None:
                    part, predicted_ms = f"stage {index} ({stage['device']})", stage[phase]["predicted_ms"]
                    rows.append(_row(run.strategy, part, phase, predicted_ms, stage[phase]["measured_ms"]))
        for phase in ("prefill", "decode"):
            seconds = entry[f"{phase}_s"]
            rows.append(_row(run.strategy, WHOLE, phase, 1000 * seconds["predicted"], {"p50": 1000 * seconds["measured"]}))
    return rows


def _row(strategy: str, part: str, phase: str, predicted_ms: float, measured: Document) -> Row:
    return {
        "strategy": strategy, "part": part, "phase": phase, "predicted_ms": predicted_ms, "measured_ms": measured["p50"],
        "measured_p10_ms": measured.get("p10"), "measured_p90_ms": measured.get("p90"),
        "error_percent": 100 * (predicted_ms - measured["p50"]) / measured["p50"] if measured["p50"] else None,
    }  # fmt: skip


def predicted_measured(experiment: Experiment, summary: Document) -> list[Figure]:
    """The diagonal plot, and the same points as errors in percent."""
    rows = _rows(experiment, summary)
    return [
        Figure(
            name="predicted_measured",
            title="Predicted against measured",
            caption=(
                "Each point is one quantity the planner relied on. On the diagonal the prediction was exact; the band is ±10 %. "
                "Circles: one micro-batch on one stage (median of all calls); diamonds: a phase of the whole batch."
            ),
            source=summary["source"],
            rows=rows,
            draw=_draw_diagonal,
            width="half",
        ),
        Figure(
            name="prediction_error",
            title="Prediction error, part by part",
            caption=(
                "Left of the line the run took longer than predicted, right of it it was quicker. Errors of single stages partly cancel "
                "in the whole batch; waiting that no stage's own time explains shows up only there."
            ),
            source=summary["source"],
            rows=rows,
            draw=_draw_errors,
            width="half",
        ),
    ]


def _hover(row: Row) -> str:
    spread = f" (p10–p90 {number(row['measured_p10_ms'])}–{number(row['measured_p90_ms'])})" if row["measured_p10_ms"] is not None else ""
    return (
        f"<b>{label(row['strategy'])}</b>, {label(row['part'])}, {row['phase']}<br>predicted {number(row['predicted_ms'])} ms<br>"
        f"measured {number(row['measured_ms'])} ms{spread}<br>error {percent(row['error_percent'], signed=True)}"
    )


def _draw_diagonal(rows: list[Row]) -> go.Figure:
    rows = [row for row in rows if row["predicted_ms"] > 0 and row["measured_ms"] > 0]
    values = [row[key] for row in rows for key in ("predicted_ms", "measured_ms")]
    low, high = min(values) / 1.5, max(values) * 1.5
    figure = go.Figure()
    figure.add_scatter(
        x=[low, high, high, low], y=[low * (1 - BAND), high * (1 - BAND), high * (1 + BAND), low * (1 + BAND)], fill="toself", mode="none",
        fillcolor="rgba(138,148,166,.22)", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    line = {"color": "#8a94a6", "width": 1}
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for phase in ("prefill", "decode"):
        mine = [row for row in rows if row["phase"] == phase]
        figure.add_scatter(
            x=[row["predicted_ms"] for row in mine], y=[row["measured_ms"] for row in mine], mode="markers", name=phase, hoverinfo="text",
            hovertext=[_hover(row) for row in mine], cliponaxis=False,
            error_y={"symmetric": False, "thickness": 1, "width": 0, "color": PHASE_COLOURS[phase],
                     "array": [max(0.0, (row["measured_p90_ms"] or row["measured_ms"]) - row["measured_ms"]) for row in mine],
                     "arrayminus": [max(0.0, row["measured_ms"] - (row["measured_p10_ms"] or row["measured_ms"])) for row in mine]},
            marker={"size": 10, "color": PHASE_COLOURS[phase], "opacity": 0.9,
                    "symbol": ["diamond" if row["part"] == WHOLE else "circle" for row in mine]},
        )  # fmt: skip
    scale = {"type": "log", "dtick": 1, "tickformat": ",~r", "range": [math.log10(low), math.log10(high)]}
    figure.update_layout(layout(
        400, xaxis=axis(title="predicted ms", **scale), yaxis=axis(title="measured ms", **scale),
    ))  # fmt: skip
    return figure


def _draw_errors(rows: list[Row]) -> go.Figure:
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    figure = go.Figure()
    for phase, offset in (("prefill", -0.16), ("decode", 0.16)):
        mine = [row for row in rows if row["phase"] == phase and row["error_percent"] is not None]
        figure.add_scatter(
            x=[row["error_percent"] for row in mine], y=[strategies.index(row["strategy"]) + offset for row in mine], mode="markers",
            name=phase, hoverinfo="text", hovertext=[_hover(row) for row in mine], cliponaxis=False,
            marker={"size": 11, "color": PHASE_COLOURS[phase], "opacity": 0.9,
                    "symbol": ["diamond" if row["part"] == WHOLE else "circle" for row in mine]},
        )  # fmt: skip
    reach = max(12.0, 1.12 * max(abs(row["error_percent"] or 0) for row in rows))
    figure.add_vline(x=0, line={"color": "#8a94a6", "width": 1.5})
    figure.update_layout(layout(
        400, xaxis=axis(range=[-reach, reach], ticksuffix=" %", nticks=5, tickangle=0, title="(predicted − measured) / measured"),
        yaxis=category_axis(strategies),
    ))  # fmt: skip
    return figure
