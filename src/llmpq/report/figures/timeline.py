"""What every stage did when: the timeline of one served run."""

from collections import Counter
from typing import Any

import plotly.graph_objects as go

from llmpq.report.experiment import Run
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import number
from llmpq.report.palette import PHASE_COLOURS

MOST_CALLS = 6000  # a page with more bars than this is slow to open


def run_timeline(run: Run, source: str) -> Figure:
    """One row per event of the run's trace: stage, what, micro-batch, start and duration in ms from the first event on."""
    rows = trace_rows(run)
    title, left_out = f"One run as it happened: {run.strategy}", ""
    if run.simulation is not None:
        title, left_out = (
            f"The beginning of the simulated run: {run.strategy}",
            " Nothing ran: these are the times that the simulation gave.",
        )
    elif len(rows) > MOST_CALLS:
        left_out = f" Shown are the first {MOST_CALLS:,} of {len(rows):,} calls; {run.strategy}/timeline.json holds all."
    return Figure(
        name="timeline",
        title=title,
        caption=(
            "Each lane is a stage (one process on one device); each block is one micro-batch being worked on, gaps are waiting. First all "
            "prompts are read (prefill), then one token after the other is made (decode). Use the buttons or drag sideways to look "
            "closer; double-click to see everything again." + left_out
        ),
        source=source,
        rows=rows[:MOST_CALLS],
        draw=_draw,
    )


def trace_rows(run: Run) -> list[Row]:
    """The trace's complete events ("ph": "X": one model call of one stage), sorted by start.

    ``step`` counts a micro-batch's tokens, ``call`` the calls of a stage.
    """
    devices = {index: stage["device"] for index, stage in enumerate(run.plan["stages"])}
    rows = [
        {
            "stage": event["pid"],
            "device": devices.get(event["pid"], ""),
            "what": event["cat"],
            "micro_batch": event["args"]["micro_batch"],
            "step": event["args"]["step"],
            "start_ms": event["ts"] / 1000,
            "duration_ms": event["dur"] / 1000,
        }
        for event in run.timeline
        if event.get("ph") == "X"
    ]
    rows.sort(key=lambda row: (row["start_ms"], row["stage"]))
    calls: Counter[int] = Counter()
    for row in rows:
        row["call"] = calls[row["stage"]]
        calls[row["stage"]] += 1
    return rows


def _draw(rows: list[Row]) -> go.Figure:
    stages = sorted({row["stage"] for row in rows})
    names = {row["stage"]: row["device"] for row in rows}
    figure = go.Figure()
    for what in ("prefill", "decode"):
        mine = [row for row in rows if row["what"] == what]
        odd = [0.62 if row["call"] % 2 else 1.0 for row in mine]  # neighbouring calls tell themselves apart
        figure.add_bar(
            orientation="h", base=[row["start_ms"] / 1000 for row in mine], x=[row["duration_ms"] / 1000 for row in mine], name=what,
            y=[stages.index(row["stage"]) for row in mine], width=0.62, hoverinfo="text",
            hovertext=[_hover(row) for row in mine], marker={"color": PHASE_COLOURS[what], "opacity": odd, "line": {"width": 0}},
        )  # fmt: skip
    end = max((row["start_ms"] + row["duration_ms"] for row in rows), default=0.0) / 1000
    figure.update_layout(layout(
        130 + 64 * len(stages), barmode="overlay", dragmode="zoom", margin={"l": 8, "r": 20, "t": 64, "b": 44},
        updatemenus=[_views(rows, end)],
        xaxis=axis(range=[0, end], title="seconds since the first prompt went in", nticks=8),
        yaxis=axis(range=[len(stages) - 0.4, -0.5], showgrid=False, fixedrange=True, tickmode="array", tickvals=list(range(len(stages))),
                   ticktext=[f"stage {stage}<br>{label(names[stage])}" for stage in stages], ticklabelstandoff=6),
    ))  # fmt: skip
    return figure


def _views(rows: list[Row], end: float) -> dict[str, Any]:
    """Buttons: the whole run, its prefill, a few rounds of decoding."""
    views = [("whole run", 0.0, end)]
    prefill = [row["start_ms"] + row["duration_ms"] for row in rows if row["what"] == "prefill"]
    decode = [row for row in rows if row["what"] == "decode"]
    if prefill:
        views.append(("prefill", 0.0, 1.02 * max(prefill) / 1000))
    if decode:
        middle = decode[len(decode) // 2]["start_ms"] / 1000
        first, last = decode[0]["start_ms"] / 1000, max(row["start_ms"] + row["duration_ms"] for row in decode) / 1000
        rounds = max(1, sum(1 for row in decode if (row["stage"], row["micro_batch"]) == (decode[0]["stage"], decode[0]["micro_batch"])))
        views.append(("three decode rounds", middle, min(last, middle + 3 * (last - first) / rounds)))
    buttons = [{"label": name, "method": "relayout", "args": [{"xaxis.range": [low, high]}]} for name, low, high in views]
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 28}}
    look = {"font": {"size": 12}, "bgcolor": "rgba(138,148,166,.18)", "borderwidth": 0, "showactive": False}
    return {"type": "buttons", "direction": "right", "buttons": buttons, **place, **look}


def _hover(row: Row) -> str:
    return (
        f"<b>stage {row['stage']}</b> ({label(row['device'])}): {row['what']}<br>micro-batch {row['micro_batch']}, step {row['step']}<br>"
        f"{number(row['duration_ms'])} ms from {number(row['start_ms'] / 1000, 4)} s on"
    )
