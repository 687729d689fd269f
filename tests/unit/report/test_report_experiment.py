"""What a report refuses: anything missing, cut off, or left from an earlier run. One message that names the file, and nothing written."""

import json
from pathlib import Path

import pytest
from report_factory import Paths, make_experiment

from llmpq.errors import ArtifactError, ConfigError
from llmpq.report.inputs import find_inputs
from llmpq.report.write import write_report

FILES = ["problem.json", "llmpq/plan.json", "llmpq/serve.json", "llmpq/quality.json", "llmpq/timeline.json", "uniform/plan.json"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return make_experiment(tmp_path, strategies=("llmpq", "uniform"))


def _refused(paths: Paths) -> str:
    with pytest.raises(ArtifactError) as caught:
        write_report(paths.directory, **paths.arguments())
    assert not any((paths.directory / name).exists() for name in ("summary.json", "summary.csv", "report.html", "figures"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(paths: Paths, name: str) -> None:
    (paths.directory / name).unlink()
    assert _refused(paths).startswith(f"{paths.directory / name}: no such file")


def _served_continuously(file: Path, tokens_per_s: float | None) -> None:
    """As serve.json of another schedule than the plan's: with a simulation's prediction, or without any."""
    found = json.loads(file.read_text(encoding="utf-8"))
    times = dict.fromkeys(("prefill_s", "decode_s", "total_s"), None if tokens_per_s is None else 1.5)
    found["throughput"]["predicted"] = {"tokens_per_s": tokens_per_s, **times, "by": tokens_per_s and "simulation"}
    file.write_text(json.dumps({**found, "schedule": "continuous"}), encoding="utf-8")


def test_runs_are_compared_with_the_prediction_of_the_schedule_that_ran(paths: Paths) -> None:
    for strategy in ("llmpq", "uniform"):
        _served_continuously(paths.directory / strategy / "serve.json", 123.0)
    write_report(paths.directory, **paths.arguments())
    summary = json.loads((paths.directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["schedule"] == "continuous"
    assert [entry["tokens_per_s"]["predicted"] for entry in summary["strategies"]] == [123.0, 123.0]
    plan = json.loads((paths.directory / "llmpq" / "plan.json").read_text(encoding="utf-8"))
    assert summary["strategies"][0]["planned_total_s"] == plan["predicted"]["total_s"] != 1.5


def test_a_run_that_nothing_predicts_is_named(paths: Paths) -> None:
    for strategy in ("llmpq", "uniform"):
        _served_continuously(paths.directory / strategy / "serve.json", None)
    assert _refused(paths).startswith(f"{paths.directory / 'llmpq' / 'serve.json'}: key 'throughput.predicted': nothing was predicted")


def test_runs_of_different_schedules_are_named(paths: Paths) -> None:
    _served_continuously(paths.directory / "uniform" / "serve.json", 123.0)
    assert _refused(paths).startswith(f"{paths.directory / 'uniform' / 'serve.json'}: key 'schedule': uniform ran the schedule continuous")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(paths: Paths, name: str) -> None:
    file = paths.directory / name
    file.write_text(file.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert _refused(paths).startswith(f"{file}: not a complete JSON file")


@pytest.mark.parametrize("which", ["indicator", "cost"])
def test_shared_files_are_checked_too(paths: Paths, which: str) -> None:
    file = paths.indicator if which == "indicator" else paths.costs[1]
    file.write_text("{}", encoding="utf-8")
    assert _refused(paths).startswith(f"{file}: key 'schema' is None")


@pytest.mark.parametrize(
    ("name", "key"),
    [("uniform/plan.json", "problem_sha256"), ("uniform/serve.json", "plan_sha256"), ("uniform/quality.json", "weights_sha256")],
)
def test_a_file_of_an_earlier_run_is_refused(paths: Paths, name: str, key: str) -> None:
    file = paths.directory / name
    document = json.loads(file.read_text(encoding="utf-8"))
    document[key] = "f" * 64
    file.write_text(json.dumps(document), encoding="utf-8")
    message = _refused(paths)
    assert message.startswith(f"{file}: key '{key}'")
    assert "delete it and run its stage again" in message


def test_a_plan_in_the_wrong_folder_is_refused(paths: Paths) -> None:
    (paths.directory / "uniform" / "plan.json").write_bytes((paths.directory / "llmpq" / "plan.json").read_bytes())
    assert "key 'strategy'" in _refused(paths)


@pytest.mark.parametrize("text", ["[]", '{"other": 1}', '{"traceEvents": {}}', '{"traceEvents": [1]}'])
def test_a_timeline_of_another_form_is_refused(paths: Paths, text: str) -> None:
    file = paths.directory / "llmpq" / "timeline.json"
    file.write_text(text, encoding="utf-8")
    message = _refused(paths)
    assert message.startswith(f"{file}: key 'traceEvents'")


def test_a_call_without_its_times_is_refused(paths: Paths) -> None:
    file = paths.directory / "llmpq" / "timeline.json"
    file.write_text('{"traceEvents": [{"ph": "M"}, {"ph": "X", "cat": "decode", "pid": 0, "ts": 1.0, "args": {}}]}', encoding="utf-8")
    assert _refused(paths).startswith(f"{file}: key 'traceEvents[1]': a call needs args.micro_batch, args.step, cat, dur")


def test_strategies_must_have_read_the_same_texts(paths: Paths) -> None:
    file = paths.directory / "uniform" / "quality.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["texts"].reverse()
    file.write_text(json.dumps(document), encoding="utf-8")
    assert _refused(paths).startswith(f"{file}: key 'texts': not the texts of llmpq")


def test_no_strategy_is_an_error(paths: Paths) -> None:
    with pytest.raises(ConfigError, match="no strategy"):
        write_report(paths.directory, **paths.arguments(strategies=[]))


def test_inputs_are_found_from_the_folder(paths: Paths) -> None:
    found = find_inputs(paths.directory)
    assert found == {"problem": paths.problem, "indicator": paths.indicator, "costs": paths.costs, "strategies": ["llmpq", "uniform"]}


def test_inputs_are_found_after_the_results_have_moved(paths: Paths, tmp_path: Path) -> None:
    """Provenance names files relative to where the workflow ran; a report made from elsewhere finds them beside the experiment."""
    document = json.loads(paths.problem.read_text(encoding="utf-8"))
    inputs = document["provenance"]["inputs"]
    document["provenance"]["inputs"] = {str(Path(name).relative_to(tmp_path)): digest for name, digest in inputs.items()}
    paths.problem.write_text(json.dumps(document), encoding="utf-8")
    found = find_inputs(paths.directory)
    assert (found["indicator"], found["costs"]) == (paths.indicator, paths.costs)


def test_a_folder_without_plans_is_an_error(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=())
    with pytest.raises(ArtifactError, match="run the planning stage first"):
        find_inputs(paths.directory)
