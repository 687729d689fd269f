"""A strategy that does not fit: recorded instead of a plan, passed on by serving and evaluating, shown by report and tracking."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_experiment

from llmpq import artifacts, planless
from llmpq.commands.plan import summary
from llmpq.errors import ArtifactError, ConfigError, InfeasibleError, ServeError
from llmpq.plan.check import check
from llmpq.planning import write_plan
from llmpq.report.experiment import load_experiment
from llmpq.report.write import write_report
from llmpq.serve.batch import serve
from llmpq.track_metrics import metrics_of

PROBLEM = json.loads((Path(__file__).parents[2] / "lp" / "problem.json").read_text())


@pytest.fixture
def tight(tmp_path: Path) -> Path:
    """A problem with a plan, but none on an even split."""
    problem = copy.deepcopy(PROBLEM)
    for device, size in zip(problem["devices"], (440, 200, 200), strict=True):
        device["memory_bytes"] = size
    path = tmp_path / "problem.json"
    artifacts.write(path, "problem", {**problem, "objective": {"theta_ms": 1.0}}, source="computed")
    return path


def test_the_command_fails_and_the_workflow_records_why(tight: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    with pytest.raises(InfeasibleError, match="uniform: no single width fits"):
        write_plan(tight, out, "uniform")
    assert not out.exists()
    document = write_plan(tight, out, "uniform", keep_infeasible=True, experiment="e")
    assert document["status"] == "infeasible"
    assert "stages" not in document
    assert check(artifacts.read(tight, "problem"), document) == []
    assert "made for another one" in check({**PROBLEM, "name": "other"}, document)[0]
    assert summary(document).startswith("uniform (infeasible): uniform: no single width fits")
    assert metrics_of(document) == {}


def test_llmpq_without_a_plan_is_an_error_all_the_same(tight: Path, tmp_path: Path) -> None:
    problem = artifacts.read(tight, "problem")
    devices = [{**device, "memory_bytes": 50} for device in problem["devices"]]
    artifacts.write(
        tight, "problem", {key: value for key, value in problem.items() if key != "provenance"} | {"devices": devices}, source="computed"
    )
    with pytest.raises(InfeasibleError, match="no plan fits in memory"):
        write_plan(tight, tmp_path / "plan.json", "llmpq", keep_infeasible=True)


def test_serving_and_evaluating_pass_it_on(tight: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_plan(tight, plan, "uniform", keep_infeasible=True)
    names = {name: tmp_path / name for name in ("requests.jsonl", "serve.json", "timeline.json", "quality.json")}
    planless.write_unserved(plan, names["requests.jsonl"], names["serve.json"], names["timeline.json"])
    planless.write_unevaluated(plan, names["quality.json"])
    for kind in ("serve", "quality"):
        document = artifacts.read(names[f"{kind}.json"], kind)
        assert "no single width fits" in (planless.reason(document) or "")
        assert document["plan_sha256"] == artifacts.body_digest(artifacts.read(plan, "plan"))
        assert metrics_of(document) == {}
    assert names["requests.jsonl"].read_text() == ""
    with pytest.raises(ServeError, match="strategy uniform has no plan to serve: uniform: no single width"):
        serve(plan, None, tmp_path / "workload.json", {}, tmp_path, None, tmp_path, {})


def test_a_plan_says_either_why_or_what(tight: Path, tmp_path: Path) -> None:
    document = write_plan(tight, tmp_path / "plan.json", "uniform", keep_infeasible=True)
    whole = write_plan(tight, tmp_path / "plan.json", "llmpq")
    without = {key: value for key, value in document.items() if key != "message"}
    for broken in (
        {**whole, "status": "infeasible", "message": "no"},
        without,
        {key: value for key, value in whole.items() if key != "stages"},
    ):
        with pytest.raises(ArtifactError):
            artifacts.check(broken, "plan")


def replaced(paths: Any, strategy: str) -> dict[str, Any]:
    problem = artifacts.read(paths.problem, "problem")
    folder = paths.directory / strategy
    body = planless.plan_body(problem, strategy, f"{strategy}: device 'slow0' lacks 5 bytes")
    document = artifacts.write(folder / "plan.json", "plan", body, source="computed")
    planless.write_unserved(folder / "plan.json", folder / "requests.jsonl", folder / "serve.json", folder / "timeline.json")
    planless.write_unevaluated(folder / "plan.json", folder / "quality.json")
    return document


def test_the_report_compares_the_others_and_says_who_is_missing(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path)
    replaced(paths, "uniform")
    document = write_report(paths.directory, **paths.arguments())
    assert [entry["strategy"] for entry in document["strategies"]] == ["llmpq", "adabits", "pipeedge"]
    assert document["without_plan"] == [{"strategy": "uniform", "status": "infeasible", "message": "uniform: device 'slow0' lacks 5 bytes"}]
    page = (paths.directory / "report.html").read_text(encoding="utf-8")
    assert "uniform does not fit" in page


def test_where_offloading_wins_the_verdict_begins_with_it(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, served=False)
    plan = artifacts.read(paths.directory / "llmpq" / "plan.json", "plan")
    block = {"option": "16", "ends": ["16", "16"], "stages": [{"device": "fast0", "layers": 30, "streamed": 12}], "tokens_per_s": 99.0}
    block |= {"micro_batch": {"prefill": 8, "decode": 32}, "prefill_s": 1.5, "decode_s": 2.0, "omega_sum": 0.0, "objective_ms": 3500.0}
    for wins in (True, False):
        body = {key: value for key, value in plan.items() if key != "provenance"}
        body |= {"offload": {**block, "quality_budget_met": True, "wins": wins}}
        artifacts.write(paths.directory / "llmpq" / "plan.json", "plan", body, source="computed")
        verdict = write_report(paths.directory, **paths.arguments(served=False))["verdict"]
        assert verdict["headline"].startswith("By the goal that was set, streaming layers from host memory at option 16") == wins
        assert ("(3.50 s predicted" in verdict["headline"]) == wins


def test_a_report_needs_at_least_one_plan(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("uniform",))
    replaced(paths, "uniform")
    arguments = {key: value for key, value in paths.arguments().items() if key in ("problem", "indicator", "costs", "strategies")}
    with pytest.raises(ConfigError, match="no strategy has a plan to report on; uniform: device 'slow0' lacks 5 bytes"):
        load_experiment(paths.directory, **arguments)
