"""What every figure is: rows of data (its CSV, and all it is drawn from), a drawing of them, and words around it."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go

Row = dict[str, Any]
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'


@dataclass(frozen=True)
class Figure:
    """One figure. ``draw(rows)`` uses the rows alone, so that the CSV holds all that can be seen.

    ``name`` is the stem of its CSV and its anchor; ``source`` says what the data are (measured, emulated, simulated, catalogue …);
    ``width`` is the share of the page it takes on a desk screen.
    """

    name: str
    title: str
    caption: str
    source: str
    rows: list[Row]
    draw: Callable[[list[Row]], go.Figure]
    width: Literal["wide", "half", "third"] = "wide"


def label(text: Any) -> str:
    """A name as plotly text: plotly reads tags in labels, names must not become any."""
    return escape(str(text), quote=False)


def layout(height: int, **settings: Any) -> dict[str, Any]:
    """The layout shared by all figures: transparent, small margins, legend above; colours of text and grid come from the page's CSS."""
    shared: dict[str, Any] = {
        "height": height,
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 8, "r": 20, "t": 34, "b": 44},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "font": {"size": 12}},
        "hoverlabel": {"bgcolor": "#1c2230", "bordercolor": "#1c2230", "font": {"color": "#f4f6fa", "size": 12, "family": FONT}},
        "dragmode": False,
        "bargap": 0.25,
    }
    return {**shared, **settings}


def axis(**settings: Any) -> dict[str, Any]:
    """An axis without frame: light grid, no zero line, room for its labels."""
    if "title" in settings:
        settings["title"] = {"font": {"size": 12.5}, "standoff": 8, "text": settings["title"]}
    return {"automargin": True, "showline": False, "zeroline": False, "gridcolor": "#dfe3ea", "ticks": "", **settings}


def category_axis(names: list[str], **settings: Any) -> dict[str, Any]:
    """A vertical axis of names, first at the top."""
    return axis(
        tickmode="array", tickvals=list(range(len(names))), ticktext=[label(name) for name in names],
        range=[len(names) - 0.5, -0.5], showgrid=False, ticklabelstandoff=6, **settings,
    )  # fmt: skip
