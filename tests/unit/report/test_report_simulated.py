"""Reports of experiments on devices that are not here: simulated figures, and nothing that looks measured."""

import csv
import json
from pathlib import Path

import pytest
from simulated_factory import make_simulated, report_arguments

from llmpq import artifacts
from llmpq.cost import stand_in
from llmpq.errors import ArtifactError
from llmpq.report.inputs import find_inputs
from llmpq.report.write import write_report

STRATEGIES = ("uniform", "adabits", "offload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = make_simulated(tmp_path_factory.mktemp("simulated"), "paper-3-2023", STRATEGIES)
    write_report(made, **report_arguments(made, STRATEGIES))
    return made


def test_the_summary_has_the_simulated_figures_and_says_so(folder: Path) -> None:
    summary = artifacts.read(folder / "summary.json", "summary")
    assert (summary["source"], summary["provenance"]["source"], summary["served"]) == ("simulated", "simulated", False)
    runs = {run["strategy"]: run for run in artifacts.read(folder / "simulation.json", "simulation")["runs"]}
    assert [entry["strategy"] for entry in summary["strategies"]] == ["uniform", "adabits"]
    for entry in summary["strategies"]:
        for key in ("tokens_per_s", "prefill_s", "decode_s", "total_s"):
            assert entry[key] == {"predicted": runs[entry["strategy"]][key], "measured": None, "error_percent": None}
    assert [each["strategy"] for each in summary["without_plan"]] == ["offload"]


def test_page_and_figures_say_simulated_and_that_the_damage_is_a_stand_in(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<span>simulated, uniform</span>" in page
    assert "Nothing ran: these are the times that the simulation gave." in page
    assert stand_in.LABEL.replace("'", "&#39;") in page
    assert "as it happened" not in page
    for name in ("throughput", "phases", "timeline"):
        start = page.index(f'<figure id="{name}"')
        assert ">simulated</span>" in page[start : page.index("</h3>", start)]
        with (folder / "figures" / f"{name}.csv").open(encoding="utf-8") as file:
            assert list(csv.DictReader(file))


def test_inputs_are_found_with_the_simulation(folder: Path) -> None:
    assert find_inputs(folder)["simulation"] == folder / "simulation.json"


def test_a_simulation_of_an_earlier_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "simulation.json").read_text(encoding="utf-8"))
    document["runs"][0]["plan_sha256"] = "0" * 64
    (tmp_path / "simulation.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "timeline.json").write_text('{"traceEvents": []}', encoding="utf-8")
    arguments = {**report_arguments(folder, STRATEGIES), "simulation": tmp_path / "simulation.json", "page": tmp_path / "report.html"}
    with pytest.raises(ArtifactError, match=r"runs\[uniform\]\.plan_sha256"):
        write_report(folder, **arguments)
    document["runs"].pop(0)
    (tmp_path / "simulation.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError, match="no strategy 'uniform'"):
        write_report(folder, **arguments)
    assert not (tmp_path / "report.html").exists()
