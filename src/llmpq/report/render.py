"""What all pages share: templates with escaping, figures with their CSV, plotly.js and style inside the one file."""

import base64
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.report.figures.base import Figure
from llmpq.report.summary import to_csv

SOURCE_WORDS = {
    "measured": "measured on the device named",
    "emulated": "measured in real processes on this machine that stand in for unequal devices: each has its own core, a byte budget that "
    "is enforced, and a slow-down made of real waiting",
    "simulated": "computed by event simulation of the plans on the cost model of devices that are not at hand, not measured",
    "catalogue": "computed from data-sheet figures of devices that are not at hand, not measured",
    "computed": "computed from other files",
}


def render(template: str, **values: Any) -> str:
    """The HTML of one of the package's templates; every name from an artifact is escaped, style and plotly.js are inlined once."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    files = resources.files("llmpq.report")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    css = Markup(files.joinpath("page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, plotly=Markup(get_plotlyjs()), **values)


def view(figure: Figure, page: Path, figure_directory: Path) -> dict[str, Any]:
    """A figure as the templates take it: its drawing as JSON, its rows as CSV inside the page and as a link to the file."""
    from markupsafe import Markup

    table = to_csv(figure.rows)
    relative = os.path.relpath(figure_directory.absolute() / f"{figure.name}.csv", page.absolute().parent)
    drawing = json.dumps(figure.draw(figure.rows).to_plotly_json(), ensure_ascii=False, allow_nan=False, default=list)
    return {
        "figure": figure,
        "href": relative.replace(os.sep, "/"),
        "data": "data:text/csv;charset=utf-8;base64," + base64.b64encode(table.encode()).decode(),
        "json": Markup(drawing.replace("<", "\\u003c")),
    }


def write_rows(figure: Figure, figure_directory: Path) -> None:
    """The CSV of a figure."""
    artifacts.write_text(figure_directory / f"{figure.name}.csv", to_csv(figure.rows))
