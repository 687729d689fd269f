"""The bench's own runs, for real: stages killed three times in a run, a disk that is full, and a process left behind is found."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmpq.bench_faults import record
from llmpq.bench_faults.record import OK
from llmpq.bench_faults.run import Bench, Settings
from llmpq.bench_faults.served import Command

THREE_KILLS = {"barrier": 0, "continuous": 0}
"""Seeds that draw three kills, some of them while loading."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    work = tmp_path_factory.mktemp("bench-faults")
    return Bench(Settings(work / "lines.jsonl", work=work), say=lambda _: None)


@pytest.mark.parametrize("schedule", ["barrier", "continuous"])
def test_three_kills_in_a_run_lose_nothing(bench: Bench, schedule: str) -> None:
    line = bench.once("stage killed", schedule, THREE_KILLS[schedule])
    assert line.status == OK
    assert (line.injected, line.restarts, line.starts) == (3, 3, 1)
    assert (line.requests, line.lost, line.duplicated, line.wrong) == (18, 0, 0, 0)


@pytest.mark.parametrize("fault", ["disk full", "layer file corrupt"])
def test_what_the_machine_does_to_files_loses_nothing(bench: Bench, fault: str) -> None:
    line = bench.once(fault, "barrier", 0)
    assert line.status == OK
    assert (line.injected, line.starts) == (1, 2)
    assert (line.requests, line.lost, line.duplicated, line.wrong) == (18, 0, 0, 0)


def test_poisoned_requests_are_run_once_and_not_again(bench: Bench) -> None:
    """What is stored with the same code is not run again."""
    settings = Settings(bench.settings.results, ["poisoned requests"], ["barrier"], 1, bench.settings.work)
    first = Bench(settings, bench.say, bench._references).run()
    assert [(line.status, line.injected, line.requests, line.lost, line.wrong) for line in first] == [(OK, 5, 18, 0, 0)]
    assert Bench(settings, bench.say).run() == []
    assert record.read(bench.settings.results) == first


@pytest.fixture
def ended_command() -> Iterator[Command]:
    with Command([sys.executable, "-c", "pass"]) as command:
        command.wait()
        yield command


def test_a_stage_that_outlives_its_command_is_found(ended_command: Command) -> None:
    """The words of a stage's command line, its launcher's process among them, decide."""
    words = [sys.executable, "-c", "import time; time.sleep(60)", "llmpq.serve.worker", str(ended_command.pid), "7", "0"]
    with subprocess.Popen(words) as left:
        try:
            assert ended_command.leftovers(within_s=0.5) == [f"process {left.pid} is left"]
        finally:
            left.kill()
    assert ended_command.leftovers(within_s=0.5) == []


def test_shared_memory_that_is_left_is_found(ended_command: Command, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    ended_command.mapped |= {str(kept), str(tmp_path / "gone")}
    assert ended_command.leftovers(within_s=0.1) == [f"{kept} is left"]
