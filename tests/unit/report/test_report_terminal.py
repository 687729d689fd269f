"""The table in the terminal and the command that prints it."""

import io
from pathlib import Path

import pytest
from report_factory import make_experiment

from llmpq import artifacts
from llmpq.cli import main
from llmpq.report.experiment import load_experiment
from llmpq.report.format import number
from llmpq.report.summary import summarise
from llmpq.report.terminal import show


@pytest.mark.parametrize("width", [100, 120])
@pytest.mark.parametrize(
    "devices", [("only",), ("fast0", "slow0"), ("fast0", "slow0", "slow1"), tuple(f"gpu-{index}" for index in range(8))]
)
def test_the_table_fits_and_nothing_is_cut_off(tmp_path: Path, devices: tuple[str, ...], width: int) -> None:
    paths = make_experiment(tmp_path, devices=devices)
    inputs = {"problem": paths.problem, "indicator": None, "costs": [], "strategies": paths.strategies}
    summary = summarise(load_experiment(paths.directory, **inputs))
    out = io.StringIO()
    show(summary, "results/experiments/duo/report.html", out, width=width)
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "\x1b" not in text
    for entry in summary["strategies"]:
        line = next(line for line in text.splitlines() if line.strip().startswith(entry["strategy"]))
        for value in (entry["tokens_per_s"], entry["prefill_s"], entry["decode_s"]):
            assert number(value["measured"]) in line.split()
        for quality in entry["quality"]:
            assert number(quality["perplexity"]) in line.split()
    assert summary["verdict"]["headline"].split(",")[0] in text
    assert "results/experiments/duo/report.html" in text
    assert "make ui" in text


def test_the_command_writes_the_report_and_prints_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq", "uniform"))
    assert main(["report", str(paths.directory)]) == 0
    first = capsys.readouterr().out
    artifacts.read(paths.directory / "summary.json", "summary")
    assert (paths.directory / "report.html").is_file()
    assert len(list((paths.directory / "figures").glob("*.csv"))) >= 10
    assert main(["report", str(paths.directory), "--table"]) == 0
    assert capsys.readouterr().out == first


def test_the_command_writes_elsewhere_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq", "uniform"))
    out = tmp_path / "elsewhere"
    assert main(["report", str(paths.directory), "--out", str(out), "--strategies", "uniform"]) == 0
    assert [entry["strategy"] for entry in artifacts.read(out / "summary.json", "summary")["strategies"]] == ["uniform"]
    assert not (paths.directory / "report.html").exists()


def test_a_missing_experiment_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere/problem.json: no such file" in error
    assert main(["report", str(tmp_path / "nowhere"), "--table"]) == 2
    assert "nowhere/summary.json: no such file" in capsys.readouterr().err
