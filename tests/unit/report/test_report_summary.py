"""summary.json and summary.csv: every figure is the artifact's own."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_experiment

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.report.write import write_report


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_every_figure_is_that_of_the_artifacts(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    write_report(paths.directory, **paths.arguments())
    summary = artifacts.read(paths.directory / "summary.json", "summary")
    assert [entry["strategy"] for entry in summary["strategies"]] == paths.strategies
    for entry in summary["strategies"]:
        folder = paths.directory / entry["strategy"]
        plan, serve, quality = (_read(folder / f"{name}.json") for name in ("plan", "serve", "quality"))
        for key in ("tokens_per_s", "prefill_s", "decode_s", "total_s"):
            assert entry[key]["predicted"] == plan["predicted"][key]
            assert entry[key]["measured"] == serve["throughput"]["measured"][key]
        assert [(text["text"], text["perplexity"]) for text in entry["quality"]] == [(t["text"], t["perplexity"]) for t in quality["texts"]]
        assert [device["predicted"] for device in entry["bytes"]] == [stage["bytes"]["total"] for stage in plan["stages"]]
        assert [device["measured"] for device in entry["bytes"]] == [stage["bytes"]["measured"]["rss_growth"] for stage in serve["stages"]]
        assert entry["planning"] == {key: plan["certificate"][key] for key in ("seconds", "gap", "status", "solver")}
        assert entry["options"] == [option for stage in plan["stages"] for option in stage["options"]]


def test_a_run_by_another_engine_is_told_and_what_is_not_known_of_it_stays_empty(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    for strategy in paths.strategies:
        file = paths.directory / strategy / "serve.json"
        serve = _read(file) | {"backend": "vllm", "engine": "vllm 0.32.0"}
        for stage in serve["stages"]:
            growth = stage["bytes"]["measured"]["rss_growth"]
            unknown = dict.fromkeys(("weights", "kv", "embedding", "head", "transport"))
            stage |= {"send_s": None, "bytes": {**stage["bytes"], "measured": {**unknown, "rss_growth": growth}}}
        file.write_text(json.dumps(serve), encoding="utf-8")
    write_report(paths.directory, **paths.arguments())
    summary = artifacts.read(paths.directory / "summary.json", "summary")
    assert summary["engine"] == "vllm 0.32.0"
    told = "Served by vllm 0.32.0; predictions are of a profile through it, quality is measured with llmpq's own kernels."
    assert told in summary["verdict"]["points"]
    with (paths.directory / "figures/memory.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert {row["measured_weights_bytes"] for row in rows} == {""}
    assert all(float(row["measured_growth_bytes"]) > 0 for row in rows)


def test_error_and_standard_error_worked_out_by_hand(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq",), speed={"llmpq": 1.25}, perplexity={"llmpq": 20.0})
    write_report(paths.directory, **paths.arguments())
    entry = _read(paths.directory / "summary.json")["strategies"][0]
    assert entry["total_s"]["error_percent"] == pytest.approx(-20.0)  # predicted 1, measured 1.25
    assert entry["tokens_per_s"]["error_percent"] == pytest.approx(25.0)
    assert entry["quality"][0]["standard_error"] == pytest.approx(20.0 * 0.031)


def test_the_goal_is_that_of_one_batch_of_slots(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq",), objective={"theta_ms": 500.0})
    problem = _read(paths.problem)
    problem["workload"]["requests"] = 96  # three batches of 32 slots
    paths.problem.write_text(artifacts.dumps(problem), encoding="utf-8")
    plan = _read(paths.directory / "llmpq" / "plan.json")
    plan["problem_sha256"] = artifacts.body_digest(problem)
    (paths.directory / "llmpq" / "plan.json").write_text(artifacts.dumps(plan), encoding="utf-8")
    write_report(paths.directory, **paths.arguments(), served=False)
    entry = _read(paths.directory / "summary.json")["strategies"][0]
    expected = 1000 * plan["predicted"]["total_s"] / 3 + 500.0 * plan["omega_sum"]
    assert entry["goal_ms"] == {"predicted": pytest.approx(expected), "measured": None, "error_percent": None}


def test_a_device_left_out_has_no_bytes(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq",))
    plan = _read(paths.directory / "llmpq" / "plan.json")
    plan["stages"][0]["options"] += plan["stages"].pop()["options"]
    plan["binding"] = []
    (paths.directory / "llmpq" / "plan.json").write_text(artifacts.dumps(plan), encoding="utf-8")
    write_report(paths.directory, **paths.arguments(), served=False)
    devices = _read(paths.directory / "summary.json")["strategies"][0]["bytes"]
    assert [device["predicted"] is None for device in devices] == [False, True]
    page = (paths.directory / "report.html").read_text(encoding="utf-8")
    assert "not used" in page
    assert "leaves out slow0" in page


def test_csv_holds_the_numbers_of_the_json(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    write_report(paths.directory, **paths.arguments())
    entries = _read(paths.directory / "summary.json")["strategies"]
    with (paths.directory / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == paths.strategies
    for row, entry in zip(rows, entries, strict=True):
        assert float(row["tokens_per_s_measured"]) == entry["tokens_per_s"]["measured"]
        assert float(row["total_s_error_percent"]) == entry["total_s"]["error_percent"]
        assert float(row["perplexity_python-docs_se"]) == entry["quality"][1]["standard_error"]
        assert int(row["bytes_slow0_budget"]) == entry["bytes"][1]["budget"]
        assert row["source"] == "emulated"
        assert (row["gap"] == "") == (entry["planning"]["gap"] is None)
    assert math.isclose(float(rows[0]["planning_s"]), entries[0]["planning"]["seconds"])


def test_plans_alone_give_a_report_without_measured_figures(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, served=False, source="catalogue")
    summary = write_report(paths.directory, **paths.arguments(), served=False)
    assert summary["served"] is False
    assert all(entry["tokens_per_s"]["measured"] is None and entry["quality"] == [] for entry in summary["strategies"])
    assert summary["verdict"]["side"] == "predicted"
    assert "is predicted to serve" in summary["verdict"]["headline"]


def test_a_degraded_fit_is_said(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    assert write_report(paths.directory, **paths.arguments())["degraded_fits"] == []
    cost = _read(paths.costs[1])
    cost["fits"][0]["heldout_mape"] = 0.17
    paths.costs[1].write_text(artifacts.dumps({**cost, "degraded": True}), encoding="utf-8")
    summary = write_report(paths.directory, **paths.arguments())
    assert summary["degraded_fits"] == [{"device": "cpu-slow0", "heldout_percent": 17.0}]
    assert "on cpu-slow0 (17.0 %)" in summary["verdict"]["points"][-1]


def test_a_plan_that_takes_no_time_is_refused(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq",), served=False)
    file = paths.directory / "llmpq" / "plan.json"
    plan = _read(file)
    plan["predicted"] |= {"total_s": 0, "tokens_per_s": None}
    file.write_text(artifacts.dumps(plan), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"llmpq/plan\.json: key 'predicted\.total_s' is 0"):
        write_report(paths.directory, **paths.arguments(), served=False)
