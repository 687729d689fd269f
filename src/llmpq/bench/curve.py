"""The figure of planning time against layers and devices, drawn by plotly; a browser that is at hand writes it as SVG."""

import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from llmpq import artifacts
from llmpq.bench.cases import CURVE
from llmpq.bench.record import Record
from llmpq.bench.tables import proved, row_of
from llmpq.report.figures.base import axis, layout
from llmpq.report.palette import option_colour

WIDTH, HEIGHT = 760, 420
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Lines from dark to light with the number of devices: the palette's steps.
STEPS = ("16", "8", "w8a8", "4")
_PAGE = """<!DOCTYPE html><body><pre></pre><div></div><script>{plotly}</script><script>
const drawing = {drawing};
Plotly.newPlot(document.querySelector("div"), drawing.data, drawing.layout)
  .then(plot => Plotly.toImage(plot, {{format: "svg", width: {width}, height: {height}}}))
  .then(url => {{ document.querySelector("pre").textContent = decodeURIComponent(url.slice(url.indexOf(",") + 1)); }});
</script></body>"""


def write_figure(path: Path, records: Sequence[Record]) -> str:
    """Draw the curve into ``path`` where it was measured and a browser is at hand; what to tell the user ('' if nothing)."""
    shown, program = curve_records(records), browser()
    if not shown:
        return ""
    if program is None:
        return f"{path} was not drawn again: that needs one of {', '.join(BROWSERS)}"
    text = svg(draw(shown), program)
    if not text.startswith("<svg"):
        return f"{path} was not drawn again: {program} gave no picture"
    artifacts.write_text(path, text + "\n")
    return ""


def curve_records(records: Sequence[Record]) -> list[Record]:
    """What the figure shows: the curve's sizes with theta, HiGHS where it was measured, else GLPK."""
    own = [record for record in records if record.kind == "plan" and record.mode == "theta" and row_of(record) in CURVE]
    solver = "highs" if any(record.solver == "highs" for record in own) else "glpk"
    return [record for record in own if record.solver == solver]


def draw(records: Sequence[Record]) -> go.Figure:
    """A line per number of devices; hollow where the time limit came before the proof."""
    figure = go.Figure()
    devices = sorted({_size(record)[1] for record in records})
    for index, count in enumerate(devices):
        mine = sorted((record for record in records if _size(record)[1] == count), key=_size)
        colour = option_colour(STEPS[index % len(STEPS)])
        figure.add_scatter(
            x=[_size(record)[0] for record in mine],
            y=[max(record.seconds, 0.01) for record in mine],
            name=f"{count} devices",
            mode="lines+markers",
            line={"width": 2.5, "color": colour},
            marker={"size": 10, "symbol": ["circle" if proved(record) else "circle-open" for record in mine], "color": colour},
            cliponaxis=False,
        )
    layers = sorted({_size(record)[0] for record in records})
    settings = layout(
        HEIGHT,
        width=WIDTH,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        margin={"l": 8, "r": 24, "t": 40, "b": 52},
        xaxis=axis(
            title="layers (hollow: stopped by the time limit)", type="log", tickvals=layers, ticktext=[str(count) for count in layers]
        ),
        yaxis=axis(title="planning time, s", type="log", tickvals=[0.1, 0.3, 1, 3, 10, 30, 100, 300], tickformat="~g"),
    )
    figure.update_layout(settings)
    return figure


def _size(record: Record) -> tuple[int, int]:
    """(layers, devices)."""
    layers, rest = row_of(record).split("x")
    return int(layers), int(rest.split("-")[0])


def browser() -> str | None:
    """A browser that can draw, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def svg(figure: go.Figure, program: str, height: int = HEIGHT) -> str:
    """The figure, ``height`` pixels high, as SVG text, drawn by plotly.js in the browser ``program``; '' where the browser gives none."""
    from plotly.offline import get_plotlyjs

    with tempfile.TemporaryDirectory(prefix="llmpq-curve-") as folder:
        page = Path(folder) / "curve.html"
        text = _PAGE.format(plotly=get_plotlyjs(), drawing=figure.to_json(), width=WIDTH, height=height)
        page.write_text(text, encoding="utf-8")
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    found = re.search(r"<pre>(.*?)</pre>", shown, flags=re.DOTALL)
    return html.unescape(found.group(1)) if found else ""
