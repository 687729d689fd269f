"""The plans: which layer lies on which device, with how many bits. One strip of layers per strategy, all under each other."""

from typing import Any

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import by_bits, layer_range, number
from llmpq.report.palette import DEVICE_COLOURS, ink_on, option_colour

LONGEST_HEADING = 51  # characters that fit above a strip on a phone
STRIP, LANE = 0.42, 0.23  # heights of the strip of layers and of the lane of devices under it; one strategy takes 1


def plan_strips(experiment: Experiment, summary: Document) -> Figure:
    """One row per (strategy, layer): device and option."""
    rows: list[Row] = []
    for run, entry in zip(experiment.runs, summary["strategies"], strict=True):
        for number_of_stage, stage in enumerate(run.plan["stages"]):
            for offset, option in enumerate(stage["options"]):
                rows.append({
                    "strategy": run.strategy, "layer": stage["first_layer"] + offset, "option": option,
                    "stage": number_of_stage, "device": stage["device"], "tokens_per_s": entry["tokens_per_s"][summary["verdict"]["side"]],
                })  # fmt: skip
    return Figure(
        name="plans",
        title="The plans, layer by layer",
        caption=(
            "Each strip is the model from its first layer (left) to its last. Colour is the weight option of a layer: dark is many bits, "
            "bright is few. The grey bar below says which device runs those layers; a cut in the strip is where data travels from one "
            "device to the next."
        ),
        source="computed",
        rows=rows,
        draw=_draw,
    )


def _draw(rows: list[Row]) -> go.Figure:
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure = go.Figure()
    options = by_bits([row["option"] for row in rows])
    segments = [(strategies.index(segment[0]["strategy"]), segment) for segment in _segments(rows, ("strategy", "stage", "option"))]
    for option in options:
        mine = [(lane, segment) for lane, segment in segments if segment[0]["option"] == option]
        figure.add_trace(_bars(mine, label(option), option_colour(option), STRIP, 0, [_option_hover(s) for _, s in mine], legend=True))
    stages = [(strategies.index(segment[0]["strategy"]), segment) for segment in _segments(rows, ("strategy", "stage"))]
    for index, device in enumerate(devices):
        mine = [(lane, segment) for lane, segment in stages if segment[0]["device"] == device]
        colour = DEVICE_COLOURS[index % len(DEVICE_COLOURS)]
        figure.add_trace(_bars(mine, label(device), colour, LANE, 0.355, [_stage_hover(s) for _, s in mine], legend=False))
    for lane, text in enumerate(_headings([[segment for where, segment in stages if where == lane] for lane in range(len(strategies))])):
        figure.add_annotation(x=0, xref="paper", xanchor="left", y=lane - 0.355, text=text, showarrow=False, font={"size": 11.5})
    layers = max(row["layer"] for row in rows) + 1
    figure.update_layout(layout(
        70 + 108 * len(strategies), barmode="overlay", uniformtext={"mode": "hide", "minsize": 10},
        xaxis=axis(range=[-0.05, layers + 0.05], showgrid=False, title="layer", tickvals=_ticks(layers),
                   ticktext=[str(tick) for tick in _ticks(layers, 0)]),
        yaxis=axis(range=[len(strategies) - 0.4, -0.52], visible=False), margin={"l": 4, "r": 4, "t": 34, "b": 44},
    ))  # fmt: skip
    return figure


def _headings(plans: list[list[list[Row]]]) -> list[str]:
    """Name and speed of every strategy from the segments of its stages, with these where they are short enough for a phone."""
    speeds = [f"  ·  {number(stages[0][0]['tokens_per_s'])} tokens/s" for stages in plans]
    orders = ["  ·  " + " → ".join(f"{segment[0]['device']} {len(segment)}" for segment in stages) for stages in plans]
    names = [stages[0][0]["strategy"] for stages in plans]
    fits = all(len(name + speed + order) <= LONGEST_HEADING for name, speed, order in zip(names, speeds, orders, strict=True))
    return [
        f"<b>{label(name)}</b>{speed}" + (label(order) if fits else "") for name, speed, order in zip(names, speeds, orders, strict=True)
    ]


def _ticks(layers: int, centre: float = 0.5) -> list[Any]:
    step = next(step for step in (1, 2, 5, 10, 20, 50) if layers / step <= 12 or step == 50)
    return [layer + centre if centre else layer for layer in range(0, layers, step)]


def _segments(rows: list[Row], keys: tuple[str, ...]) -> list[list[Row]]:
    """Neighbouring rows that agree in ``keys``, together."""
    segments: list[list[Row]] = []
    for row in rows:
        if segments and all(segments[-1][-1][key] == row[key] for key in keys):
            segments[-1].append(row)
        else:
            segments.append([row])
    return segments


def _bars(
    segments: list[tuple[int, list[Row]]], name: str, colour: str, thickness: float, below: float, hover: list[str], *, legend: bool
) -> go.Bar:
    return go.Bar(
        orientation="h",
        y=[lane + below for lane, _ in segments],
        base=[segment[0]["layer"] + 0.04 for _, segment in segments],
        x=[len(segment) - 0.08 for _, segment in segments],
        width=thickness,
        marker={"color": colour, "line": {"width": 0}},
        text=[name] * len(segments),
        textposition="inside",
        insidetextanchor="middle",
        insidetextfont={"color": ink_on(colour), "size": 12},
        textangle=0,
        hovertext=hover,
        hoverinfo="text",
        name=name,
        legendgroup=name,
        showlegend=legend,
    )


def _option_hover(segment: list[Row]) -> str:
    first = segment[0]
    where = layer_range(first["layer"], len(segment))
    return f"<b>{label(first['strategy'])}</b>: {where}<br>option {label(first['option'])} on {label(first['device'])}"


def _stage_hover(segment: list[Row]) -> str:
    first = segment[0]
    where = layer_range(first["layer"], len(segment))
    return f"<b>{label(first['strategy'])}</b>: stage {first['stage']} on {label(first['device'])}<br>{len(segment)} layers ({where})"
