"""Stages that are killed, hang or lose their launcher: a quick, clear failure, no orphan, nothing finished is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import serve_cases
from serve_cases import Case, requests

from llmpq.errors import ServeError
from llmpq.serve.batch import serve

LENGTHS, LIMITS = [5, 9, 17, 12, 3, 30], [2, 40, 40, 3, 4, 40]
FINISH_EARLY = {"r0", "r3", "r4"}


def long_case(directory: Path, checkpoint: Path, **settings: object) -> Case:
    """Some seconds of work over two stages, in which three requests finish long before the others."""
    case = Case(directory, checkpoint, requests(LENGTHS, LIMITS), [3, 3], (2, 3), **settings)
    case.cluster = serve_cases.cluster(2, slowdown=25.0)
    return case


class Meddler(threading.Thread):
    """Waits until ``ready`` says so, then does ``act`` to the stage process of ``rank``; remembers when, and who was there."""

    def __init__(self, ready: Callable[[], bool], rank: int, act: Callable[[psutil.Process], None]) -> None:
        super().__init__(daemon=True)
        self.ready, self.rank, self.act = ready, rank, act
        self.at = 0.0
        self.stages: list[psutil.Process] = []

    def run(self) -> None:
        while not self.ready():
            time.sleep(0.02)
        self.stages = serve_cases.stage_processes()
        self.at = time.monotonic()
        self.act(self.stages[self.rank])


def some_finished(case: Case) -> Callable[[], bool]:
    return lambda: len(case.journal()) >= len(FINISH_EARLY)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[dict]:
    case = long_case(tmp_path_factory.mktemp("undisturbed"), tiny_checkpoint)
    case.cluster = serve_cases.cluster(2)
    case.serve()
    return case.results()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_stage_fails_the_run_in_seconds_and_a_rerun_serves_the_rest(
    tmp_path: Path, tiny_checkpoint: Path, undisturbed: list[dict], rank: int
) -> None:
    case = long_case(tmp_path, tiny_checkpoint)
    meddler = Meddler(some_finished(case), rank, psutil.Process.kill)
    meddler.start()
    with pytest.raises(ServeError) as failure:
        case.serve()
    assert time.monotonic() - meddler.at < 5
    message = str(failure.value)
    assert f"stage {rank} (d{rank}, layers {3 * rank}–{3 * rank + 2}): the process was killed by SIGKILL" in message
    assert f"stage-{rank}.log ends:" in message
    assert "3 of 6 requests are finished and kept in" in message
    assert len(meddler.stages) == 2
    assert not any(process.is_running() for process in meddler.stages)
    assert not (tmp_path / "requests.jsonl").exists()
    assert case.journal().keys() == FINISH_EARLY

    case.cluster = serve_cases.cluster(2)
    document = case.serve()
    assert any("already finished: 3 of the requests; only the missing ones are served" in line for line in case.said)
    assert (document["served_requests"], document["resumed_requests"], document["new_tokens"]) == (3, 3, 120)
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in undisturbed]
    assert document["throughput"]["predicted"]["total_s"] == pytest.approx(1.0)  # half of the requests


def test_a_killed_stage_is_started_again_when_allowed(tmp_path: Path, tiny_checkpoint: Path, undisturbed: list[dict]) -> None:
    case = long_case(tmp_path, tiny_checkpoint, max_restarts=1)
    meddler = Meddler(some_finished(case), 1, psutil.Process.kill)
    meddler.start()
    document = case.serve()
    assert (document["restarts"], document["served_requests"]) == (1, 3)
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in undisturbed]


def test_a_stage_that_hangs_is_named_after_the_time_out(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = long_case(tmp_path, tiny_checkpoint, timeout_s=2)
    meddler = Meddler(some_finished(case), 1, psutil.Process.suspend)
    meddler.start()
    with pytest.raises(ServeError) as failure:
        case.serve()
    assert time.monotonic() - meddler.at < 10
    message = str(failure.value)
    assert message.startswith("stage 1 (d1, layers 3–5): no answer from stage 1 for 2 s (serve.timeout_s)")
    assert f"Its log {tmp_path / 'logs' / 'stage-1.log'} ends:" in message
    assert "3 of 6 requests are finished and kept in" in message
    assert not any(process.is_running() for process in meddler.stages)
    assert case.journal().keys() >= FINISH_EARLY


def test_a_stage_that_takes_no_more_messages_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """During prefill the first stage waits for nothing but free buffers."""
    case = Case(tmp_path, tiny_checkpoint, requests([60] * 60, 2), [3, 3], (1, 60), timeout_s=2)
    case.cluster = serve_cases.cluster(2, slowdown=100.0)
    meddler = Meddler(lambda: any("prompts read" in line for line in case.said), 1, psutil.Process.suspend)
    meddler.start()
    with pytest.raises(ServeError, match=r"^stage 1 \(d1, layers 3–5\): no answer from stage 1 for 2 s \(serve.timeout_s\)"):
        case.serve()
    assert time.monotonic() - meddler.at < 8
    assert not any("tokens/s" in line for line in case.said)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_that_hangs_is_started_again_when_allowed(
    tmp_path: Path, tiny_checkpoint: Path, undisturbed: list[dict], rank: int
) -> None:
    case = long_case(tmp_path, tiny_checkpoint, timeout_s=2, max_restarts=1)
    meddler = Meddler(some_finished(case), rank, psutil.Process.suspend)
    meddler.start()
    document = case.serve()
    assert (document["restarts"], document["served_requests"]) == (1, 3)
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in undisturbed]
    told = next(line for line in case.said if "restart 1 of 1" in line)
    assert told.startswith(f"stage {rank} (d{rank}, layers {3 * rank}–{3 * rank + 2}): no answer from stage {rank} for 2 s")
    assert f"stage-{rank}.log ends:" in told
    assert "3 of 6 requests are finished and kept in" in told
    assert not any(process.is_running() for process in meddler.stages)


def test_a_prefill_longer_than_the_time_out_is_no_hang(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 calls of about 0.15 s: each far below the time-out, together far above it and the launcher's slack."""
    monkeypatch.setattr("llmpq.serve.launch.SLACK_S", 0.2)
    case = Case(tmp_path, tiny_checkpoint, requests([60] * 30, 1), [6], (1, 30), timeout_s=1.5)
    case.cluster = serve_cases.cluster(1, slowdown=100.0)
    assert case.serve()["throughput"]["measured"]["prefill_s"] > 1.7
    assert any("of 30 prompts read" in line and "s left; 0 of 30 requests finished" in line for line in case.said)


def launcher(case: Case) -> "subprocess.Popen[str]":
    """The same run in a process of its own, as the command line would start it."""
    plan = serve_cases.write_plan(case.directory / "plan.json", case.body)
    config = serve_cases.configuration(case, case.directory / "config.yaml")
    command = [sys.executable, "-m", "llmpq", "serve", plan, "--requests", case.workload, "--config", config]
    command += ["--checkpoint", case.checkpoint, "--out", case.directory]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_when_the_launcher_is_stopped_no_stage_outlives_it_and_the_command_goes_on(
    tmp_path: Path, tiny_checkpoint: Path, undisturbed: list[dict], number: int, code: int
) -> None:
    case = long_case(tmp_path, tiny_checkpoint)
    process = launcher(case)
    try:
        while not some_finished(case)():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        stages = serve_cases.stage_processes(process.pid)
        assert len(stages) == 2
        os.kill(process.pid, number)
        assert process.wait(timeout=5) == code
        assert gone(stages, within_s=3)
    finally:
        process.kill()
        process.communicate()
    assert case.journal().keys() >= FINISH_EARLY
    assert not (tmp_path / "requests.jsonl").exists()
    if number == signal.SIGKILL:  # nobody could tidy up
        case.cluster = serve_cases.cluster(2)
        output, errors = launcher(case).communicate(timeout=60)
        assert "3 requests, 120 tokens in " in output, errors
        assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in undisturbed]


def test_a_signal_is_heeded_while_a_failure_is_being_looked_into(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The first stage has given the hung one up; within the second in which others may fail too, the user stops the command."""
    case = long_case(tmp_path, tiny_checkpoint, timeout_s=2)
    process = launcher(case)
    try:
        while not some_finished(case)():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        first, second = serve_cases.stage_processes(process.pid)
        second.suspend()
        while first.is_running() and first.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=5) == 143
        assert gone([first, second], within_s=3)
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_cannot_be_watched_does_not_outlive_the_error(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1))
    with pytest.raises(ServeError, match=r"stage 0 \(d0, layers 0–2\): its process could not be started: .*Too many open files"):
        case.serve()
    assert serve_cases.stage_processes() == []


def test_a_run_that_died_after_its_last_request_keeps_the_results_and_measures_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 4, 3), [6], (1, 2), slots=2)
    case.serve()
    whole = case.results()
    (tmp_path / "requests.jsonl").unlink()
    (tmp_path / "requests.jsonl").mkdir()
    with pytest.raises(ServeError, match="cannot be written: Is a directory"):
        case.serve()
    assert len(case.journal()) == 4
    (tmp_path / "requests.jsonl").rmdir()
    document = case.serve()
    assert (document["served_requests"], document["new_tokens"]) == (2, 6)
    assert case.results() == whole
    assert any("the last 2 are served again to measure" in line for line in case.said)


def test_serving_works_off_the_main_thread(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1))
    documents = []
    thread = threading.Thread(target=lambda: documents.append(case.serve()))
    thread.start()
    thread.join(60)
    assert documents[0]["new_tokens"] == 6


def test_two_runs_of_the_same_plan_at_once_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = long_case(tmp_path, tiny_checkpoint)
    process = launcher(case)
    try:
        while not case.journal():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        again = (tmp_path / "plan.json", None, case.workload, case.cluster, case.checkpoint, None, tmp_path, case.settings)
        with pytest.raises(ServeError, match="in use: another process serves the same plan and requests"):
            serve(*again)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
