"""The small experiment from its configuration to its report, with the real model; then what a user does to it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from process_cases import processes, wait_for
from runs import EXPERIMENT, ROOT, Ran, mlflow_runs, run, started, workers

from llmpq import artifacts
from llmpq.config import compose
from llmpq.track_files import targets

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1800)]
HOME = Path(f"results/experiments/{EXPERIMENT}")
OPTIONS_SHOWN = ("w8a8", "16", "4")
KINDS = {"plan": "plan", "serve": "serve", "quality": "quality", "problem": "problem", "workload": "workload", "summary": "summary"}


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder; large files, which every stage replaces as a whole, are linked where that is possible."""

    def copy(source: str, target: str) -> None:
        if os.stat(source).st_size > 20_000_000:
            with contextlib.suppress(OSError):
                os.link(source, target)
                return
        shutil.copy2(source, target)

    return Path(shutil.copytree(folder, to, symlinks=True, copy_function=copy, ignore=shutil.ignore_patterns("mlflow")))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A folder with the prepared model and texts in which the small experiment has run once."""
    folder = tmp_path_factory.mktemp("run")
    if not (ROOT / "resources" / "models").is_dir() or not (ROOT / "resources" / "texts").is_dir():
        pytest.fail("the model is not prepared: run the tests with `make test`")
    copied(ROOT / "resources", folder / "resources")
    for path in (folder / "resources").rglob("*"):
        if path.name == ".snakemake_timestamp" or path.suffix in (".txt", ".json"):
            path.touch()  # made just now, not before the scripts were last edited
    return folder, run(folder)


@pytest.fixture
def folder(first: tuple[Path, Ran]) -> Path:
    assert first[1].code == 0, first[1].text[-2000:]
    return first[0]


def read(folder: Path, strategy: str, name: str) -> dict[str, Any]:
    return artifacts.read(folder / HOME / strategy / f"{name}.json", KINDS[name])


def tokens(folder: Path, strategy: str) -> list[list[int]]:
    lines = (folder / HOME / strategy / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["tokens"] for line in lines]


def test_everything_is_made_and_holds_together(folder: Path) -> None:
    experiment = compose(ROOT / "config", [EXPERIMENT])[EXPERIMENT]
    assert not [path for path in targets(experiment) if not (folder / path).exists()]
    problem = artifacts.read(folder / HOME / "problem.json", "problem")
    for strategy in experiment["strategies"]:
        plan, served, quality = (read(folder, strategy, name) for name in ("plan", "serve", "quality"))
        assert plan["problem_sha256"] == artifacts.body_digest(problem)
        assert served["plan_sha256"] == artifacts.body_digest(plan)
        assert sum(len(stage["options"]) for stage in plan["stages"]) == 30
        assert served["weights_sha256"] == quality["weights_sha256"]
        assert served["throughput"]["measured"]["tokens_per_s"] > 0
        assert [len(found) for found in tokens(folder, strategy)] == [experiment["workload"]["new_tokens"]] * 4
        for stage in served["stages"]:
            assert (
                sum(stage["bytes"]["measured"][part] for part in ("weights", "kv", "embedding", "head"))
                <= stage["bytes"]["predicted"]["budget"]
            )
    page = (folder / HOME / "report.html").read_text(encoding="utf-8")
    for word in (*experiment["strategies"], *OPTIONS_SHOWN, "fast0", "slow0"):
        assert word in page
    assert not re.findall(r'src="(?:https?:)?//|<link [^>]*href="(?:https?:)?//', page), "the page is not self-contained"


def test_progress_says_which_job_of_how_many(first: tuple[Path, Ran], folder: Path) -> None:
    lines = first[1].text.splitlines()
    starts = [line for line in lines if line.startswith("[")]
    assert starts[0].startswith("[  1/")
    total = int(starts[0].split("/")[1].split("]")[0])
    assert starts[-1].startswith(f"[{total:3d}/{total}] track")
    assert not [line for line in lines if "Traceback" in line or "Select jobs" in line]


def test_a_second_run_has_nothing_to_do_and_says_nothing(folder: Path) -> None:
    again = run(folder)
    assert (again.code, again.text.strip()) == (0, "")
    assert again.seconds < 15


def test_mlflow_has_a_finished_run_for_each_strategy_and_stage(folder: Path) -> None:
    found = mlflow_runs(folder)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for strategy in ("llmpq", "uniform"):
        metrics = found[strategy, None].data.metrics
        for name in (
            "measured.tokens_per_s",
            "predicted.tokens_per_s",
            "perplexity.wikipedia",
            "perplexity.news",
            "gap",
            "planning_s",
        ):
            assert name in metrics or (strategy, name) == ("uniform", "gap")


def test_the_same_seed_gives_the_same_plan_and_the_same_tokens(folder: Path) -> None:
    deciding = ("stages", "micro_batch", "omega_sum", "objective_ms", "problem_sha256")
    before = {key: read(folder, "llmpq", "plan")[key] for key in deciding}, tokens(folder, "llmpq")
    again = run(folder, "--forcerun", "plan", "workload")
    assert again.code == 0, again.text
    assert ({key: read(folder, "llmpq", "plan")[key] for key in deciding}, tokens(folder, "llmpq")) == before
    assert len({run.info.run_id for run in mlflow_runs(folder).values()}) == len(mlflow_runs(folder))


def test_a_truncated_artifact_is_named_and_its_stage_mends_it(folder: Path) -> None:
    problem = folder / HOME / "problem.json"
    whole = problem.read_bytes()
    problem.write_bytes(whole[: len(whole) // 2])
    broken = run(folder, "--forcerun", "plan")
    assert broken.code != 0
    errors = [line for line in broken.text.splitlines() if line.startswith("llmpq: error: plan")]
    assert errors
    assert all("problem.json: not a complete JSON file" in line for line in errors)
    assert "Traceback" not in broken.text
    failed = {stage for (_, stage), run in mlflow_runs(folder).items() if run.info.status == "FAILED"}
    assert "plan" in failed  # of whichever strategy came first; the front reads the same file
    problem.unlink()
    mended = run(folder)
    assert mended.code == 0, mended.text
    assert {run.info.status for run in mlflow_runs(folder).values()} == {"FINISHED"}


def test_a_stage_process_that_dies_fails_the_run_within_seconds(folder: Path) -> None:
    shutil.rmtree(folder / HOME / "llmpq" / "journal", ignore_errors=True)
    with started(folder, "--forcerun", "serve") as process:
        victim = wait_for(lambda: workers(process.pid), 120, "a serving process")[-1]
        everything = processes(process.pid)
        victim.send_signal(signal.SIGKILL)
        assert process.wait(timeout=90) != 0
        left = [each for each in everything if each.is_running() and each.status() != psutil.STATUS_ZOMBIE and each.pid != process.pid]
    text = (folder / "run.txt").read_text(encoding="utf-8")
    assert not left
    assert "llmpq: error: serve smoke/" in text
    assert "SIGKILL" in text
    failed = [key for key, run in mlflow_runs(folder).items() if run.info.status == "FAILED" and key[1] == "serve"]
    assert len(failed) == 1
    mended = run(folder)
    assert mended.code == 0, mended.text
    assert {run.info.status for run in mlflow_runs(folder).values()} == {"FINISHED"}


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGINT"])
def test_a_run_that_is_killed_or_interrupted_leaves_no_process_and_goes_on(folder: Path, kind: str) -> None:
    with started(folder, "--forcerun", "serve") as process:
        wait_for(lambda: workers(process.pid), 120, "a serving process")
        everything = processes(process.pid)
        if kind == "SIGKILL":
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
        process.wait(timeout=60)
        running = lambda: [each for each in everything if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]  # noqa: E731
        wait_for(lambda: not running(), 30, "every process of the run to end")
    again = run(folder)
    assert again.code == 0, again.text
    found = mlflow_runs(folder)
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_strategy_that_does_not_fit_is_recorded_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    tight = ["strategies=[llmpq,uniform-published,offload]", "cluster.types.cpu-slow.memory_mib=80"]
    done = run(copy, overrides=tight)
    assert done.code == 0, done.text
    for strategy, message in (("uniform-published", "slow0"), ("offload", "no device of this problem has host memory")):
        for kind in ("plan", "serve", "quality"):
            document = read(copy, strategy, kind)
            assert document["status"] == "infeasible"
            assert message in document["message"]
    assert read(copy, "llmpq", "serve")["throughput"]["measured"]["tokens_per_s"] > 0
    page = (copy / HOME / "report.html").read_text(encoding="utf-8")
    assert "uniform-published does not fit" in page
    assert {run.info.status for run in mlflow_runs(copy).values()} == {"FINISHED"}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["cluster.types.cpu-fast.memory_mib=40", "cluster.types.cpu-slow.memory_mib=40"],
            ["no plan fits in memory", "fast0", "bytes"],
        ),
        (["quantizer.options=[16,w8a8,4]", "workload.prompt_tokens=9000"], ["positions"]),
        (["workload.requests=4000", "workload.slots=4000"], ["workload smoke", "too short"]),
    ],
    ids=["a budget that nothing fits", "a prompt longer than the model", "more prompts than the text has"],
)
def test_what_cannot_be_done_is_one_clear_message(folder: Path, tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    copy = copied(folder, tmp_path / "copy")
    failed = run(copy, overrides=overrides)
    errors = [line for line in failed.text.splitlines() if line.startswith("llmpq: error")]
    assert failed.code != 0
    assert errors, failed.text
    for part in parts:
        assert part in " ".join(errors), failed.text
    assert "Traceback" not in failed.text


def test_a_port_in_use_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed = run(copy, "--", str(HOME / "llmpq" / "serve.json"), overrides=[f"backend.port={port}"])
    assert failed.code != 0
    assert f"port {port}" in failed.text
    assert not (copy / HOME / "llmpq" / "serve.json").exists()


def test_a_corrupt_model_file_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    shutil.rmtree(copy / "resources" / "models")
    checkpoint = copy / "resources" / "models" / "smollm2-135m-instruct" / "checkpoint"
    shutil.copytree(ROOT / "resources" / "models", copy / "resources" / "models")
    weights = next(checkpoint.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    failed = run(
        copy, "--rerun-triggers", "mtime", "--forcerun", "calibrate", "--", "results/calibration/smollm2-135m-instruct/tiny.safetensors"
    )
    assert failed.code != 0
    errors = [line for line in failed.text.splitlines() if line.startswith("llmpq: error: calibrate")]
    assert errors, failed.text
    assert weights.name in errors[0]


def test_single_results_can_be_asked_for(folder: Path) -> None:
    """The four kinds of target that the README shows are up to date after a run."""
    names = [
        "results/profiles/tiny/smollm2-135m-instruct/cpu-slow.json",
        "results/indicators/smollm2-135m-instruct/tiny/residual-error.json",
        str(HOME / "llmpq" / "plan.json"),
        str(HOME / "llmpq" / "serve.json"),
    ]
    done = run(folder, "--", *names)
    assert (done.code, done.text.strip()) == (0, "")


def test_a_file_of_requests_is_served_by_a_plan_of_the_experiment(folder: Path) -> None:
    (folder / "requests").mkdir(exist_ok=True)
    lines = [{"id": "a", "prompt": "Once upon a time", "max_new_tokens": 4}, {"id": "b", "prompt": "", "max_new_tokens": 4}]
    (folder / "requests" / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    target = HOME / "llmpq" / "served" / "mine.jsonl"
    done = run(folder, "--", str(target))
    assert done.code == 0, done.text[-2000:]
    found = [json.loads(line) for line in (folder / target).read_text(encoding="utf-8").splitlines()]
    assert [each["id"] for each in found] == ["a", "b"]
    assert (len(found[0]["tokens"]), "error" in found[1]) == (4, True)
    assert artifacts.read(folder / target.with_suffix(".serve.json"), "serve")["served_requests"] == 1
    again = run(folder, "--", str(target))
    assert (again.code, again.text.strip()) == (0, "")


def test_the_terminal_table_names_every_strategy(folder: Path) -> None:
    program = [str(Path(sys.executable).parent / "llmpq"), "report", "--table", str(HOME)]
    shown = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    for word in ("llmpq", "uniform", "perplexity", "predicted", "report.html"):
        assert word in shown.stdout
