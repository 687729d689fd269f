"""The page of a suite: its strips are the plans, its tables have their CSV, and it needs no network."""

import csv
import re
from pathlib import Path

import pytest
from simulated_factory import make_simulated, report_arguments

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError
from llmpq.report.experiment import load_experiment
from llmpq.report.summary import summarise, write_summary
from llmpq.suites.page import write_suite
from llmpq.suites.strips import pieces

STRATEGIES = ("uniform", "adabits", "het", "offload")
NAMES = ("paper-3-2023", "paper-3-today")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, dict[str, str]], Path]:
    """(folders by name, facts by name, the folder with page and data)."""
    root = tmp_path_factory.mktemp("suite")
    folders, facts = {}, {}
    for name in NAMES:
        folders[name], facts[name] = make_simulated(root, name, STRATEGIES)
        arguments = report_arguments(folders[name], STRATEGIES)
        given = {key: arguments[key] for key in ("problem", "indicator", "costs", "strategies", "simulation")}
        experiment = load_experiment(folders[name], **given)
        write_summary(experiment, summarise(experiment), arguments["summary"], arguments["table"])
    out = root / "results" / "suites" / "paper"
    write_suite("Suite paper", folders, facts, out / "report.html", out / "data")
    return folders, facts, out


def read(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_strips_are_the_plans(suite: tuple[dict[str, Path], dict[str, dict[str, str]], Path]) -> None:
    folders, _, out = suite
    rows = read(out, "plans")
    for name in NAMES:
        for strategy in ("uniform", "adabits", "het"):
            plan = artifacts.read(folders[name] / strategy / "plan.json", "plan")
            mine = [row for row in rows if (row["experiment"], row["strategy"]) == (name, strategy)]
            assert [(row["device"], row["option"], int(row["layers"])) for row in mine] == [
                (piece["device"], piece["option"], piece["layers"]) for piece in pieces(plan)
            ]
            assert sum(int(row["layers"]) for row in mine) == 48
    assert {row["source"] for row in rows} == {"simulated"}
    page = (out / "report.html").read_text(encoding="utf-8")
    drawn = re.findall(r'<div class="stage" style="flex-grow:(\d+)"', page)
    assert sum(map(int, drawn)) == 48 * 3 * len(NAMES)


def test_runs_of_equal_options_are_joined_within_a_stage() -> None:
    plan = {
        "stages": [
            {"device": "a", "first_layer": 0, "options": ["16", "16", "4"]},
            {"device": "b", "first_layer": 3, "options": ["4"]},
        ]
    }
    found = [(piece["stage"], piece["option"], piece["first_layer"], piece["layers"]) for piece in pieces(plan)]
    assert found == [(0, "16", 0, 2), (0, "4", 2, 1), (1, "4", 3, 1)]


def test_the_page_stands_alone_and_links_to_what_there_is(suite: tuple[dict[str, Path], dict[str, dict[str, str]], Path]) -> None:
    folders, _, out = suite
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    for name in NAMES:
        assert f'<a href="../../experiments/{name}/report.html">{name}</a>' in page
        assert folders[name] == (out / "../../experiments" / name).resolve()
    for name in re.findall(r'<a href="data/([\w.]+)"', page):
        assert (out / "data" / name).is_file()
    assert {path.name for path in (out / "data").iterdir()} == {"overview.csv", "plans.csv", "published.csv", "speedups.csv"}
    assert 'id="experiments" class="sortable"' in page
    assert "Beside the published figures" in page
    assert "a stand-in" in page


def test_without_rows_of_the_paper_nothing_is_compared(
    suite: tuple[dict[str, Path], dict[str, dict[str, str]], Path], tmp_path: Path
) -> None:
    folders, facts, _ = suite
    other = {name: {**each, "suite": "quick"} for name, each in facts.items()}
    write_suite("Quick", folders, other, tmp_path / "report.html", tmp_path / "data")
    assert "published figures" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "data" / "published.csv").exists()


def test_a_missing_file_and_an_empty_suite_are_named(
    suite: tuple[dict[str, Path], dict[str, dict[str, str]], Path], tmp_path: Path
) -> None:
    _, facts, _ = suite
    with pytest.raises(ArtifactError, match=r"gone/summary\.json: no such file"):
        write_suite("x", {NAMES[0]: tmp_path / "gone"}, facts, tmp_path / "report.html", tmp_path / "data")
    with pytest.raises(ConfigError, match="no experiment to compare"):
        write_suite("x", {}, {}, tmp_path / "report.html", tmp_path / "data")
