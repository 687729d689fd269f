"""How much each layer suffers under each option: the indicator, and what the plan chose."""

import math

import plotly.graph_objects as go

from llmpq.report.experiment import Document
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import by_bits, number

_SCALE = [[0.0, "#f3ecd9"], [0.25, "#f4c27a"], [0.5, "#e5793d"], [0.75, "#b13153"], [1.0, "#4b1152"]]


def sensitivity_map(indicator: Document, summary: Document, options: list[str]) -> Figure:
    """One row per (layer, option): omega, and whether the plan in focus chose that option for that layer."""
    focus = next(entry for entry in summary["strategies"] if entry["strategy"] == summary["verdict"]["focus"])
    rows = [
        {key: row[key] for key in ("layer", "option", "omega")} | {"chosen": int(focus["options"][row["layer"]] == row["option"])}
        for row in indicator["rows"]
        if row["option"] in options and row["layer"] < len(focus["options"])
    ]
    return Figure(
        name="sensitivity",
        title="Which layers mind being quantised",
        caption=(
            f"How much damage an option does to a layer, estimated by the {indicator['indicator']} indicator; the scale is such that "
            f"{indicator['reference_option']} bit in every layer adds up to 1. Darker is worse (logarithmic). A white dot marks the option "
            f"that {focus['strategy']} chose. Options without damage by definition are left blank."
        ),
        source=f"{indicator['provenance']['source']}, quantizer {indicator['quantizer']}",
        rows=rows,
        draw=_draw,
    )


def _draw(rows: list[Row]) -> go.Figure:
    options = by_bits([row["option"] for row in rows])
    layers = sorted({row["layer"] for row in rows})
    omega = {(row["option"], row["layer"]): row["omega"] for row in rows}
    levels = [[_log(omega.get((option, layer))) for layer in layers] for option in options]
    known = [level for line in levels for level in line if level is not None]
    figure = go.Figure()
    if known:
        ticks = _decades(min(known), max(known))
        hover = [[_hover(layer, option, omega.get((option, layer))) for layer in layers] for option in options]
        figure.add_heatmap(
            x=layers, y=list(range(len(options))), z=levels, xgap=1.5, ygap=3, colorscale=_SCALE, hoverinfo="text", text=hover,
            hoverongaps=False, zmin=min(known), zmax=max(known),
            colorbar={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "thickness": 10, "len": 0.8, "xpad": 0,
                      "ypad": 4, "ticks": "", "outlinewidth": 0, "tickvals": ticks, "ticktext": [_power(tick) for tick in ticks],
                      "tickfont": {"size": 11}, "tickangle": 0},
        )  # fmt: skip
    chosen = [row for row in rows if row["chosen"]]
    figure.add_scatter(
        x=[row["layer"] for row in chosen], y=[options.index(row["option"]) for row in chosen], mode="markers", hoverinfo="skip",
        showlegend=False, marker={"size": 7, "color": "#ffffff", "line": {"color": "#1c2230", "width": 1.5}},
    )  # fmt: skip
    figure.update_layout(layout(
        118 + 34 * len(options), margin={"l": 8, "r": 8, "t": 36, "b": 44},
        xaxis=axis(showgrid=False, title="layer", range=[layers[0] - 0.6, layers[-1] + 0.6], nticks=12),
        yaxis=axis(showgrid=False, tickmode="array", tickvals=list(range(len(options))), ticktext=[label(option) for option in options],
                   range=[len(options) - 0.45, -0.55], ticklabelstandoff=6),
    ))  # fmt: skip
    return figure


def _hover(layer: int, option: str, omega: float | None) -> str:
    return f"layer {layer}, option {label(option)}<br>damage (omega) {number(omega)}"


def _power(exponent: float) -> str:
    """10 to ``exponent``: 0.1, 0.01, 10⁻³ …; not a whole power: three digits."""
    if exponent == round(exponent) and exponent < -2:
        return f"10<sup>−{-exponent:.0f}</sup>"
    return number(10**exponent, 1 if exponent == round(exponent) else 3)


def _log(value: float | None) -> float | None:
    return math.log10(value) if value is not None and value > 0 else None


def _decades(low: float, high: float) -> list[float]:
    """Whole powers of ten inside [low, high]; its ends where there are fewer than two."""
    inside = list(range(math.ceil(low), math.floor(high) + 1))
    step = max(1, math.ceil(len(inside) / 4))
    return [float(tick) for tick in inside[::step]] if len(inside) > 1 else [low, high]
