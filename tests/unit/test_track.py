"""MLflow: every file is there, one run for each identity, and failed stages are shown as failed until they are mended."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmpq import artifacts, session
from llmpq.config import compose
from llmpq.errors import LlmpqError
from llmpq.track import SHARED, config_digest, read_record, record_failures, track_experiment
from llmpq.track_files import MAX_ARTIFACT_BYTES, TRACKED, StageFile, stage_files, stage_label

ROOT = Path(__file__).parents[2]
PLAN = {
    "schema": "llmpq.plan",
    "predicted": {"tokens_per_s": 10.0, "total_s": 4.0, "prefill_s": 1.0, "decode_s": 3.0},
    "omega_sum": 0.5,
    "objective_ms": 4000.0,
    "micro_batch": {"prefill": 2, "decode": 4},
    "certificate": {"seconds": 0.5, "gap": 0.0, "bound": 4000.0},
    "stages": [
        {
            "device": "fast0",
            "first_layer": 0,
            "options": ["16", "4"],
            "embedding_option": "8",
            "head_option": None,
            "bytes": {"total": 2**20},
        }
    ],
}
SERVE = {
    "schema": "llmpq.serve",
    "throughput": {"measured": {"tokens_per_s": 8.0, "total_s": 5.0}, "predicted": {"tokens_per_s": 10.0, "total_s": 4.0}},
    "load_s": 1.0,
    "restarts": 0,
    "stages": [{"device": "fast0", "busy_s": 4.0, "prefill": {"measured_ms": {"p50": 3.0}}, "decode": {"measured_ms": {"p50": 2.0}}}],
}
CONTENT: dict[str, Any] = {
    "plan.json": PLAN,
    "serve.json": SERVE,
    "quality.json": {
        "schema": "llmpq.quality",
        "texts": [{"text": "wikipedia", "perplexity": 20.5, "kl": {"mean": 0.02}, "top1": {"mean": 0.95}}],
        "tasks": [{"task": "continuation", "accuracy": 0.9, "low": 0.8, "high": 0.95, "questions": 100}],
    },
    "problem.json": {},
    "explain.json": {"schema": "llmpq.explain", "sentences": ["No plan is faster."]},
    "pareto.json": {"schema": "llmpq.pareto", "fronts": []},
    "summary.json": {},
    "workload.json": {"requests": [{"prompt_tokens": [1, 2, 3]}]},
    "model.json": {},
    "timeline.json": {"traceEvents": []},
    "simulated.json": {"traceEvents": []},
    "manifest.json": {"schema": "llmpq.quantised", "seconds": 3.0, "layers": {}},
}
PROFILE = {
    "schema": "llmpq.profile",
    "rows": [{"part": "layer", "phase": "prefill", "option": "16", "micro_batch": 2, "tokens": 8, "context": 8, "p50_ms": 1.5}],
}
COST = {"schema": "llmpq.cost", "fits": [{"part": "layer", "phase": "prefill", "option": "16", "heldout_mape": 0.05}]}
LINKS = {"schema": "llmpq.links", "rows": [{"from": "a", "to": "b", "bytes": 64, "p50_ms": 0.1}]}
INDICATOR = {
    "schema": "llmpq.indicator",
    "seconds": 1.0,
    "unit": 2.0,
    "rows": [{"layer": 0, "option": "4", "omega": 0.4}, {"layer": 1, "option": "4", "omega": 0.6}],
}


def content(path: str) -> bytes:
    for part, document in (("/profiles/", PROFILE), ("/cost/", COST), ("/links/", LINKS), ("/indicators/", INDICATOR)):
        if part in path:
            return json.dumps(document).encode()
    name = path.rsplit("/", 1)[1]
    return json.dumps(CONTENT[name]).encode() if name in CONTENT else f"content of {path}".encode()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database without runs: making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def experiment(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A finished experiment in an empty folder: each tracked file with a little content of its form, each job's marker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "results" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, "results/mlflow/mlflow.db")
    composed = compose(ROOT / "config", ["smoke"])
    session.begin_session(composed, total=30)
    fill(composed["smoke"])
    return composed["smoke"]


def fill(experiment: dict[str, Any]) -> None:
    names = {**{group: experiment[group]["name"] for group in ("model", "cluster", "profile", "quantizer", "indicator", "evaluate")}}
    names["experiment"] = experiment["name"]
    for tracked in (each for each in TRACKED if each.belongs_to(experiment)):
        for strategy in experiment["strategies"]:
            for device, group, text in (("cpu-fast", "layers-000-014", "wikipedia"), ("cpu-slow", "layers-015-029", "python-docs")):
                pattern = tracked.pattern.replace("*", "one") + ("model.safetensors" if tracked.pattern.endswith("/") else "")
                path = Path(pattern.format(**names, strategy=strategy, device=device, group=group, text=text))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content(str(path)))
    Path("results/experiments/smoke/config.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    for strategy in experiment["strategies"]:
        mark("serve", {"experiment": "smoke", "strategy": strategy}, "finished")


def mark(rule: str, wildcards: dict[str, str], state: str, **fields: Any) -> None:
    log = Path("results/logs") / f"{rule}.{'.'.join(wildcards.values())}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"the log of {rule}\nits last line\n", encoding="utf-8")
    current = session.read_session()
    assert current is not None
    now = time.time()
    ended = {} if state == "running" else {"ended": now}
    session.write_marker(rule, wildcards, started=now - 5, log=str(log), session=current["id"], state=state, **ended, **fields)


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{Path('results/mlflow/mlflow.db').resolve()}")


def runs() -> dict[tuple[str, str | None], Any]:
    """All runs of the experiment by (strategy, stage)."""
    store = client()
    found = store.search_runs([store.get_experiment_by_name("llmpq/smoke").experiment_id], max_results=1000)
    keyed = {(run.data.tags["llmpq.strategy"], run.data.tags.get("llmpq.stage")): run for run in found}
    assert len(keyed) == len(found), "two runs of one identity"
    return keyed


def track(experiment: dict[str, Any]) -> dict[str, Any]:
    return track_experiment(experiment, "results/experiments/smoke/mlflow.json")


def test_a_run_for_each_strategy_with_the_final_figures_and_one_for_what_they_share(experiment: dict[str, Any]) -> None:
    document = track(experiment)
    found = runs()
    assert {strategy for strategy, stage in found if stage is None} == {SHARED, "llmpq", "uniform"}
    assert {stage for strategy, stage in found if strategy == "llmpq"} == {None, "plan", "serve", "evaluate"}
    shared = {stage for strategy, stage in found if strategy == SHARED and stage}
    assert {"links", "profile/cpu-fast", "quantise/layers-015-029", "problem", "report", "indicator", "prepare_text/wikipedia"} <= shared
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    parent = found["llmpq", None].data
    assert parent.metrics["measured.tokens_per_s"] == 8.0
    assert parent.metrics["predicted.tokens_per_s"] == 10.0
    assert parent.metrics["perplexity.wikipedia"] == 20.5
    assert parent.metrics["kl_from_16_bit.wikipedia"] == 0.02
    assert parent.metrics["same_first_choice.wikipedia"] == 0.95
    assert parent.metrics["accuracy.continuation"] == 0.9
    assert parent.metrics["planning_s"] == 0.5
    assert parent.metrics["prediction_error_percent"] == -20.0
    assert parent.params["planner.solver"] == "glpk"
    assert parent.params["strategy"] == "llmpq"
    assert parent.params["cluster.members.slow0.device"] == "cpu-slow"
    assert parent.params["quantizer.options"] == "16, w8a8, 4"
    assert "fast0: layers 0 to 1, 1 × 16, 1 × 4, embedding at 8; 1 MiB" in parent.tags["mlflow.note.content"]
    for (strategy, stage), run in found.items():
        if stage:
            assert run.data.tags["mlflow.parentRunId"] == found[strategy, None].info.run_id
    assert found[SHARED, "indicator"].data.metrics["omega_sum.4"] == 1.0
    assert 4900 <= found["llmpq", "serve"].info.end_time - found["llmpq", "serve"].info.start_time <= 5100
    assert {row["run_id"] for row in document["runs"]} == {run.info.run_id for run in found.values()}
    artifacts.read("results/experiments/smoke/mlflow.json", "tracking")


def test_what_was_simulated_says_so_on_every_run(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "results" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, "results/mlflow/mlflow.db")
    simulated = compose(ROOT / "config", ["quick-3-today"], ["strategies=[llmpq,het]"])["quick-3-today"]
    session.begin_session({"quick-3-today": simulated}, total=1)
    folder = Path("results/experiments/quick-3-today")
    for strategy in simulated["strategies"]:
        (folder / strategy).mkdir(parents=True)
        (folder / strategy / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
    seconds = {"prefill_s": 1.0, "decode_s": 3.0, "total_s": 4.0, "tokens_per_s": 800.0}
    run = {"strategy": "llmpq", "plan_sha256": "0" * 64, "requests": 32, "new_tokens": 3200, **seconds}
    run["stages"] = [{"device": "t4-0", "prefill_s": 1.0, "decode_s": 2.0}]
    without = {"strategy": "het", "plan_sha256": "0" * 64, "status": "infeasible", "message": "nothing fits"}
    body = {"source": "simulated", "tables": "catalogue", "schedule": "barrier", "problem_sha256": "0" * 64, "runs": [run, without]}
    artifacts.write(folder / "simulation.json", "simulation", body, source="simulated")
    track_experiment(simulated, folder / "mlflow.json")
    store = client()
    found = store.search_runs([store.get_experiment_by_name("llmpq/quick-3-today").experiment_id])
    assert {each.data.tags["llmpq.source"] for each in found} == {"simulated"}
    parents = {each.data.tags["llmpq.strategy"]: each.data for each in found if "llmpq.stage" not in each.data.tags}
    assert {each.tags["llmpq.suite"] for each in parents.values()} == {"quick"}
    assert {key: parents["llmpq"].metrics[f"simulated.{key}"] for key in seconds} == seconds
    assert not [key for key in parents["het"].metrics if key.startswith("simulated.")]
    assert parents["llmpq"].params["kernels"] == "today"
    assert not [key for key in parents["llmpq"].params if key.startswith(("indicator", "quantizer"))]


def test_every_file_is_an_artifact_or_a_location_with_its_digest(experiment: dict[str, Any]) -> None:
    track(experiment)
    store, found = client(), runs()
    for file in stage_files(experiment):
        run = found[file.strategy or SHARED, None if file.label == "track" else file.label]
        names = {artifact.path for artifact in store.list_artifacts(run.info.run_id)}
        if file.label == "track":
            assert file.path.name in names
            continue
        listed = json.loads(Path(store.download_artifacts(run.info.run_id, "files.json")).read_text(encoding="utf-8"))
        (row,) = [row for row in listed if row["path"] == str(file.path)]
        assert row["sha256"] == artifacts.sha256_file(file.path)
        assert row["bytes"] == file.path.stat().st_size
        assert row["copied"] == (file.path.name in names)
    stages = {tracked.stage for tracked in TRACKED} - {"simulate", "export", "profile_vllm", "fit_vllm"}
    assert {file.label.split("/")[0] for file in stage_files(experiment)} == stages


def test_a_large_file_is_never_copied(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(MAX_ARTIFACT_BYTES)
    assert StageFile(path, None, "report", copy=True).copied
    with path.open("ab") as file:
        file.write(b"!")
    assert not StageFile(path, None, "report", copy=True).copied


def test_the_same_configuration_updates_its_runs_and_another_adds_some(experiment: dict[str, Any]) -> None:
    track(experiment)
    before = {key: run.info.run_id for key, run in runs().items()}
    Path("results/experiments/smoke/llmpq/quality.json").write_text(
        '{"schema": "llmpq.quality", "texts": [{"text": "wikipedia", "perplexity": 19.0}]}', encoding="utf-8"
    )
    track(experiment)
    after = runs()
    assert {key: run.info.run_id for key, run in after.items()} == before
    assert after["llmpq", None].data.metrics["perplexity.wikipedia"] == 19.0
    changed = {**experiment, "workload": {**experiment["workload"], "new_tokens": 7}}
    assert config_digest(changed) != config_digest(experiment)
    document = track(changed)
    store = client()
    everything = store.search_runs([store.get_experiment_by_name("llmpq/smoke").experiment_id], max_results=1000)
    assert len(everything) == 2 * len(before)
    assert not {row["run_id"] for row in document["runs"]} & set(before.values())


def test_what_shapes_no_result_leaves_the_identity_alone(experiment: dict[str, Any]) -> None:
    for change in ({"strategies": ["llmpq"]}, {"suite": "default"}, {"tracking": {**experiment["tracking"], "prefix": "other"}}):
        assert config_digest({**experiment, **change}) == config_digest(experiment)


def test_a_failed_stage_is_shown_with_the_end_of_its_log_and_mended_by_its_next_run(experiment: dict[str, Any]) -> None:
    names = {"experiment": "smoke", "strategy": "llmpq"}
    mark("serve", names, "failed", error="stage slow0 died")
    assert record_failures() == ["smoke/llmpq serve"]
    found = runs()
    assert found["llmpq", "serve"].info.status == found["llmpq", None].info.status == "FAILED"
    assert found["llmpq", "serve"].data.tags["llmpq.error"] == "stage slow0 died"
    assert "serve: stage slow0 died" in found["llmpq", None].data.tags["llmpq.error"]
    tail = client().download_artifacts(found["llmpq", "serve"].info.run_id, "log_tail.txt")
    assert "its last line" in Path(tail).read_text(encoding="utf-8")
    failed = found["llmpq", "serve"].info.run_id
    mark("serve", names, "finished")
    track(experiment)
    found = runs()
    assert found["llmpq", "serve"].info.run_id == failed
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert not [run for run in found.values() if "llmpq.error" in run.data.tags]


def test_a_killed_job_of_a_shared_stage_is_recorded_by_the_next_run(experiment: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    mark("profile", {"profile": "tiny", "model": "smollm2-135m-instruct", "device": "cpu-slow"}, "running")
    session.begin_session({"smoke": experiment}, total=3)
    assert "FAILED in MLflow: smoke/shared profile/cpu-slow" in capfd.readouterr().err
    run = runs()[SHARED, "profile/cpu-slow"]
    assert run.info.status == "FAILED"
    assert "never ended" in run.data.tags["llmpq.error"]
    assert not [marker for marker in session.markers() if marker["state"] == "running"]
    assert record_failures() == []


def test_a_job_stopped_by_the_death_of_its_workflow_is_recorded_too(experiment: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    mark("serve", {"experiment": "smoke", "strategy": "llmpq"}, "interrupted", error="stopped by SystemExit 143")
    session.begin_session({"smoke": experiment}, total=3)
    assert "FAILED in MLflow: smoke/llmpq serve" in capfd.readouterr().err
    assert runs()["llmpq", "serve"].info.status == "FAILED"


def test_a_failed_stage_that_runs_well_without_the_rest_is_finished(experiment: dict[str, Any]) -> None:
    names = {"experiment": "smoke", "strategy": "uniform"}
    mark("plan", names, "failed", error="first")
    session.end_session(failed=True)
    assert runs()["uniform", "plan"].info.status == "FAILED"
    session.begin_session({"smoke": experiment}, total=1)
    session.end_session()
    assert runs()["uniform", "plan"].info.status == "FAILED"
    session.begin_session({"smoke": experiment}, total=1)
    mark("plan", names, "finished")
    session.end_session()
    assert runs()["uniform", "plan"].info.status == "FINISHED"
    assert not session.REPORTED.exists()


def test_a_stage_mended_before_another_fails_is_finished(experiment: dict[str, Any]) -> None:
    names = {"experiment": "smoke", "strategy": "uniform"}
    mark("serve", names, "failed", error="first")
    record_failures()
    session.begin_session({"smoke": experiment}, total=3)
    mark("serve", names, "finished")
    mark("evaluate", names, "failed", error="second")
    assert record_failures() == ["smoke/uniform evaluate"]
    found = runs()
    assert (found["uniform", "serve"].info.status, found["uniform", "evaluate"].info.status) == ("FINISHED", "FAILED")


def test_an_interrupted_recording_leaves_nothing_running(experiment: dict[str, Any]) -> None:
    store = client()
    track(experiment)
    experiment_id = store.get_experiment_by_name("llmpq/smoke").experiment_id
    mine = {"llmpq.config_sha256": config_digest(experiment)}
    half = store.create_run(experiment_id, tags={"llmpq.identity": "half", "llmpq.strategy": "half", **mine})
    others = store.create_run(experiment_id, tags={"llmpq.identity": "theirs", "llmpq.config_sha256": "another configuration"})
    mark("track", {"experiment": "smoke"}, "running")
    assert record_failures() == ["smoke/shared track"]
    assert store.get_run(half.info.run_id).info.status == "FAILED"
    assert store.get_run(others.info.run_id).info.status == "RUNNING"
    track(experiment)
    running = store.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    assert [run.info.run_id for run in running] == [others.info.run_id]


def test_an_experiment_deleted_in_the_browser_comes_back(experiment: dict[str, Any]) -> None:
    track(experiment)
    store = client()
    store.delete_experiment(store.get_experiment_by_name("llmpq/smoke").experiment_id)
    track(experiment)
    assert store.get_experiment_by_name("llmpq/smoke").lifecycle_stage == "active"


def test_the_environments_server_is_used(
    experiment: dict[str, Any], tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    other = tmp_path / "elsewhere.db"
    shutil.copy(empty_store, other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    document = track(experiment)
    assert document["uri"] == f"sqlite:///{other}"
    assert MlflowClient(tracking_uri=f"sqlite:///{other}").get_experiment_by_name("llmpq/smoke") is not None
    assert client().get_experiment_by_name("llmpq/smoke") is None


def test_a_server_that_is_not_there_is_one_error_without_its_password(experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(LlmpqError, match=r"MLflow cannot be used: .*127\.0\.0\.1:9") as caught:
        track(experiment)
    assert "secret" not in str(caught.value)


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    for text in (None, "a: [", "just text"):
        path = tmp_path / "config.yaml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(LlmpqError, match=r"config\.yaml"):
            read_record(path)


def test_the_documented_files_are_the_tracked_ones() -> None:
    text = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(tracked.pattern for tracked in TRACKED)


def test_labels_tell_jobs_of_one_stage_apart() -> None:
    assert stage_label("profile", {"profile": "default", "model": "m", "device": "cpu-fast"}) == "profile/cpu-fast"
    assert stage_label("plan", {"experiment": "duo", "strategy": "llmpq"}) == "plan"
    assert os.sep not in stage_label("links", {"profile": "default", "cluster": "duo"})
