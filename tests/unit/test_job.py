"""What every script of the workflow does around its stage: log, lines on the terminal, marker, exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpq import session
from llmpq.errors import ConfigError

PROGRAM = """
import sys, time, types
import llmpq.job
from llmpq.errors import ServeError
llmpq.job.WATCH_EVERY_S, llmpq.job.PROGRESS_EVERY_S = 0.05, 0.1
snakemake = types.SimpleNamespace(rule="serve", wildcards={"experiment": "duo", "strategy": "llmpq"}, log=["logs/serve.log"])
with llmpq.job.job(snakemake):
    print("to standard output")
    print("to standard error", file=sys.stderr)
    BODY
"""
TITLE = "serve duo/llmpq"


def script(body: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("BODY", body)]


def run(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(script(body), cwd=folder, capture_output=True, text=True, timeout=60)


def marker(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "results/.jobs/serve.duo.llmpq.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def log(folder: Path) -> str:
    return (folder / "logs/serve.log").read_text(encoding="utf-8")


def begin(folder: Path, monkeypatch: pytest.MonkeyPatch, total: int = 7) -> None:
    monkeypatch.chdir(folder)
    session.begin_session({}, total)


def test_a_finished_job_says_so_and_keeps_its_output_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    first, second = run("pass", tmp_path), run("pass", tmp_path)
    assert first.returncode == 0
    assert first.stdout == ""
    lines = first.stderr.splitlines()
    assert lines[0] == f"[  1/7] {TITLE}"
    assert lines[1].startswith(f"          {TITLE}: done in ")
    assert second.stderr.splitlines()[0] == f"[  2/7] {TITLE}"
    assert log(tmp_path) == "to standard output\nto standard error\n"
    assert marker(tmp_path)["state"] == "finished"


def test_an_error_of_the_user_is_one_line_and_the_trace_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    ended = run("raise ServeError('stage slow0 died')", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[1:] == [f"llmpq: error: {TITLE}: stage slow0 died"]
    assert "Traceback" in log(tmp_path)
    assert (marker(tmp_path)["state"], marker(tmp_path)["error"]) == ("failed", "stage slow0 died")


def test_a_fault_of_the_program_names_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    ended = run("1 / 0", tmp_path)
    assert ended.returncode == 1
    assert "ZeroDivisionError: division by zero" in ended.stderr
    assert "trace in logs/serve.log" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    ended = run("open('/proc/none/plan.json', 'w')", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[1:] == [
        f"llmpq: error: {TITLE}: /proc/none/plan.json: No such file or directory (trace in logs/serve.log)"
    ]


@pytest.mark.parametrize("line", ["3/30 layers, 9 s left", "window 3 of 30", "9 %, 50 s left"])
def test_progress_is_the_latest_line_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    begin(tmp_path, monkeypatch)
    ended = run(f"print('{line}', flush=True); print('a warning', flush=True); time.sleep(1)", tmp_path)
    assert ended.stderr.splitlines()[1:-1] == [f"          {TITLE}: {line}"]


def test_a_job_told_to_stop_is_marked_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    process = subprocess.Popen(script("time.sleep(60)"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert TITLE in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert marker(tmp_path)["state"] == "interrupted"
    process.stderr.close()


def test_a_job_ends_when_its_workflow_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "import time; from llmpq import session; session.begin_session({}, 1); print('begun', flush=True); time.sleep(60)"
    workflow = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert workflow.stdout is not None
    assert workflow.stdout.readline() == "begun\n"
    job = subprocess.Popen(script("time.sleep(60)"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    assert TITLE in job.stderr.readline()
    workflow.kill()
    workflow.wait()
    assert job.wait(timeout=20) == 143
    assert "the workflow that started this job is gone" in log(tmp_path)
    for pipe in (workflow.stdout, job.stderr):
        pipe.close()


def test_a_job_runs_without_a_workflow_too(tmp_path: Path) -> None:
    ended = run("pass", tmp_path)
    assert ended.returncode == 0
    assert marker(tmp_path)["state"] == "finished"


def test_the_lock_of_a_killed_run_is_taken_over_and_that_of_a_living_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    begin(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=f"another run \\(process {os.getpid()}\\)"):
        session.take_over_lock()
    assert lock.exists()
    file = tmp_path / "results/.jobs/session.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**known, "began": known["began"] - 1}), encoding="utf-8")  # the number belongs to another process now
    written = file.stat().st_mtime
    os.utime(lock, (written + 1, written + 1))  # another run has just taken it and has not written its own record yet
    session.take_over_lock()
    assert lock.exists()
    os.utime(lock, (written - 1, written - 1))
    session.take_over_lock()
    assert not lock.exists()
    session.take_over_lock()


def test_a_lock_beside_the_record_of_a_run_that_ended_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    begin(tmp_path, monkeypatch)
    session.end_session()
    session.take_over_lock()
    assert lock.exists()


def test_a_half_written_marker_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch)
    (tmp_path / "results/.jobs/plan.duo.json").write_text('{"rule": "pl', encoding="utf-8")
    session.write_marker("fit", {"device": "cpu-fast"}, state="finished")
    assert [each["rule"] for each in session.markers()] == ["fit"]
