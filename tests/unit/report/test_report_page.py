"""The page: its numbers are the artifacts', its figures are their CSV files, it needs no network, and names cannot break it."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_experiment

from llmpq import artifacts
from llmpq.report.experiment import load_experiment
from llmpq.report.figures import Figure, all_figures
from llmpq.report.format import number
from llmpq.report.summary import summarise, to_csv
from llmpq.report.write import write_report


class Page(HTMLParser):
    """The parts of the page that the tests look at: attributes, table cells, text, embedded drawings and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[dict[str, str]] = []
        self.drawings: dict[str, Any] = {}
        self.styles = ""
        self.text = ""
        self._inside: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag not in ("meta", "link", "br"):
            self._inside.append((tag, values))
        if "data-key" in values:
            self.cells.append({"key": values["data-key"], "text": ""})

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, values = self._inside[-1] if self._inside else ("", {})
        if tag == "script":
            if "data-drawing" in values:
                self.drawings[values["data-drawing"]] = json.loads(data)
        elif tag == "style":
            self.styles += data
        else:
            self.text += data
            if self.cells and tag in ("td", "th"):
                self.cells[-1]["text"] += data


def _write(root: Path, **settings: Any) -> tuple[Path, Page, dict[str, Any]]:
    paths = make_experiment(root, **settings)
    summary = write_report(paths.directory, **paths.arguments())
    return paths.directory, Page((paths.directory / "report.html").read_text(encoding="utf-8")), summary


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page, dict[str, Any]]:
    return _write(tmp_path_factory.mktemp("report"))


def _figures(directory: Path, root: Path) -> list[Figure]:
    shared = root / "results"
    strategies = ["llmpq", "adabits", "pipeedge", "uniform"]
    experiment = load_experiment(
        directory,
        problem=directory / "problem.json",
        indicator=shared / "indicators" / "tiny" / "gptq" / "variance.json",
        costs=[],
        strategies=strategies,
    )
    return [figure for section in all_figures(experiment, summarise(experiment)).values() for figure in section]


def test_the_comparison_shows_the_numbers_of_the_artifacts(report: tuple[Path, Page, dict[str, Any]]) -> None:
    directory, page, _ = report
    shown = {(cell["key"], cell["text"]) for cell in page.cells}
    for strategy in ("llmpq", "adabits", "pipeedge", "uniform"):
        serve = json.loads((directory / strategy / "serve.json").read_text(encoding="utf-8"))
        quality = json.loads((directory / strategy / "quality.json").read_text(encoding="utf-8"))
        values = [serve["throughput"]["measured"][key] for key in ("tokens_per_s", "prefill_s", "decode_s")]
        for value in [*values, *(text["perplexity"] for text in quality["texts"])]:
            assert (str(value), number(value)) in shown
        for key in ("tokens_per_s", "prefill_s", "decode_s"):
            assert number(serve["throughput"]["predicted"][key]) in page.text


def test_the_answer_comes_first(report: tuple[Path, Page, dict[str, Any]]) -> None:
    _, page, summary = report
    start = page.text.index(summary["verdict"]["headline"])
    assert start < page.text.index("The strategies compared")
    assert all(point in page.text for point in summary["verdict"]["points"])


def test_formula_and_simulation_are_told_side_by_side(report: tuple[Path, Page, dict[str, Any]]) -> None:
    _, page, summary = report
    focus = summary["strategies"][0]
    predicted, simulated = number(focus["total_s"]["predicted"], 4), number(focus["simulated_total_s"], 4)
    assert f"formula gives {predicted} s for the plan of llmpq" in page.text
    assert f"gives {simulated} s." in page.text


def test_every_figure_is_its_csv(report: tuple[Path, Page, dict[str, Any]]) -> None:
    """The CSV beside the page, its copy inside it and the drawing hold the same data: the drawing follows from the CSV alone."""
    directory, page, _ = report
    figures = _figures(directory, directory.parents[2])
    assert sorted(path.stem for path in (directory / "figures").iterdir()) == sorted(figure.name for figure in figures)
    assert set(page.drawings) == {figure.name for figure in figures}
    embedded = {
        value.split(",", 1)[1]
        for tag, name, value in page.attributes
        if tag == "a" and name == "href" and value.startswith("data:text/csv;charset=utf-8;base64,")
    }
    for figure in figures:
        text = (directory / "figures" / f"{figure.name}.csv").read_text(encoding="utf-8")
        assert text == to_csv(figure.rows)
        assert base64.b64encode(text.encode()).decode() in embedded
        drawn = figure.draw(_typed(text, figure.rows)).to_plotly_json()
        assert json.loads(json.dumps(drawn, default=list)) == page.drawings[figure.name], figure.name


def _typed(text: str, like: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CSV text as rows, each column of the type it has in ``like``."""
    kinds = {key: next((type(row[key]) for row in like if row[key] is not None), str) for key in like[0]}
    rows = csv.DictReader(io.StringIO(text))
    return [{key: None if value == "" and kinds[key] is not str else kinds[key](value) for key, value in row.items()} for row in rows]


def test_every_figure_says_where_its_data_come_from(report: tuple[Path, Page, dict[str, Any]]) -> None:
    directory, _, _ = report
    known = ("measured", "emulated", "simulated", "catalogue", "computed")
    for figure in _figures(directory, directory.parents[2]):
        assert any(word in figure.source for word in known), figure.name
        assert len(figure.caption) > 40, figure.name


def test_nothing_is_loaded_from_elsewhere(report: tuple[Path, Page, dict[str, Any]]) -> None:
    _, page, _ = report
    loading = [value for tag, name, value in page.attributes if name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href")]
    assert loading
    assert not [value for value in loading if re.match(r"\s*(\w+:)?//|https?:", value)]
    assert "@import" not in page.styles
    assert not re.search(r"url\(", page.styles)
    assert not [value for tag, name, value in page.attributes if tag == "script" and name == "src"]


def test_relative_links_lead_to_files(report: tuple[Path, Page, dict[str, Any]]) -> None:
    directory, page, _ = report
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    files = [link for link in links if not link.startswith(("data:", "#"))]
    assert len(files) > 20
    assert not [link for link in files if not (directory / link).exists()]
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_no_drawing_can_end_its_script(report: tuple[Path, Page, dict[str, Any]]) -> None:
    directory, page, _ = report
    html = (directory / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert len(drawings) == len(page.drawings)
    assert not [drawing for drawing in drawings if "<" in drawing]


def test_plotly_is_inlined_once(report: tuple[Path, Page, dict[str, Any]]) -> None:
    directory, _, _ = report
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert html.count("plotly.js v") == 1
    assert len(html) < 7_000_000


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    nasty = '<img src=x onerror="alert(1)">&'
    directory, page, _ = _write(
        tmp_path, name="a<b>&c", strategies=("llmpq", "uniform"), devices=(f"dev{nasty}", "</script><script>alert(2)</script>"),
        texts=(f"t{nasty}", "plain"),
    )  # fmt: skip
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert "<img" not in html.replace("&lt;img", "")
    assert "<script>alert" not in html
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]
    assert "a<b>&c" in page.text
    assert nasty in page.text
    labels = json.dumps(page.drawings, ensure_ascii=False)
    assert "<img" not in labels
    assert "&lt;img" in labels


def test_one_strategy_on_one_device_makes_a_page(tmp_path: Path) -> None:
    _, page, _ = _write(tmp_path, strategies=("llmpq",), devices=("only",))
    assert "no other strategy was run" in page.text
    assert not [name for name in page.drawings if name.startswith("speed_quality")]


def test_the_same_artifacts_give_the_same_page(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq", "uniform"))
    texts = []
    for _ in range(2):
        write_report(paths.directory, **paths.arguments())
        texts.append((paths.directory / "report.html").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]


def test_a_front_is_drawn_and_listed(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    plan = {key: value for key, value in artifacts.read(paths.directory / "llmpq" / "plan.json", "plan").items() if key != "provenance"}
    points = [
        {"quality_budget": omega, "omega_sum": omega, "batch_ms": 1000.0, "tokens_per_s": speed, "gap": 0.001, "plan": plan}
        for omega, speed in ((0.1, 40.0), (0.8, 90.0))
    ]
    front = {"memory_factor": 1.0, "infeasible": None, "points": points}
    body = {"problem": "duo", "problem_sha256": plan["problem_sha256"], "source": "emulated", "points_asked": 2, "fronts": [front]}
    artifacts.write(paths.directory / "pareto.json", "pareto", body, source="computed")
    write_report(paths.directory, **paths.arguments(), front=paths.directory / "pareto.json")
    page = Page((paths.directory / "report.html").read_text(encoding="utf-8"))
    assert page.drawings["pareto_front"]["data"][0]["x"] == [40.0, 90.0]
    assert {"40.0", "90.0"} <= {cell["text"] for cell in page.cells}
    lines = (paths.directory / "figures" / "pareto_front.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(points) + len(paths.strategies)
