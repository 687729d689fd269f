"""What Slurm's programs say, read: states, exit codes, and which jobs of the queue are this folder's."""

import os
import stat
from pathlib import Path

import pytest

from llmpq.slurm import client
from llmpq.slurm.client import SlurmError, State, worst

SHOWN = "JobId=7 HetJobId=7 JobName=llmpq-x JobState={} Reason={} Dependency=(null) Restarts=0 ExitCode={} NodeList={} BatchHost=a"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in place of Slurm's, found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_states_of_all_components(programs: Path) -> None:
    lines = [SHOWN.format("NODE_FAIL", "NodeDown", "0:9", "t4-[0-1]"), SHOWN.format("PENDING", "Resources", "0:0", "(null)")]
    program(programs, "scontrol", "\n".join(f"echo '{line}'" for line in lines))
    found = client.states("7")
    assert found == [State("NODE_FAIL", 0, 9, "t4-[0-1]", "NodeDown"), State("PENDING", 0, 0, "", "Resources")]
    assert [state.ended for state in found or []] == [True, False]
    assert str(found[0]) == "NODE_FAIL (NodeDown), signal 9 on t4-[0-1]"


def test_a_controller_that_does_not_answer_is_asked_again_and_one_that_forgot_is_not(programs: Path) -> None:
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert client.states("7") is None
    program(programs, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    program(programs, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert client.states("7") == []
    program(programs, "sacct", "echo 'CANCELLED by 0|0:15|t4-0'")
    assert client.states("7") == [State("CANCELLED", 0, 15, "t4-0")]


def test_jobs_of_this_folder_are_told_from_others(programs: Path, tmp_path: Path) -> None:
    lines = [
        f"11|123e4567-e89b-12d3-a456-426614174000|{tmp_path}",
        f"12+0|llmpq-serve-duo-llmpq|{tmp_path}",
        f"12+1|llmpq-serve-duo-llmpq|{tmp_path}",
        f"13|my-analysis|{tmp_path}",
        "14|123e4567-e89b-12d3-a456-426614174000|/elsewhere",
        f"15|site_123e4567-e89b-12d3-a456-426614174000|{tmp_path}",
    ]
    program(programs, "squeue", "\n".join(f"echo '{line}'" for line in lines))
    assert client.left_jobs(tmp_path) == ["11", "15"]


def test_what_sbatch_says_is_the_error(programs: Path, tmp_path: Path) -> None:
    program(programs, "sbatch", "echo 'sbatch: error: invalid partition specified: h100' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"job\.sh\): sbatch: error: invalid partition specified: h100"):
        client.submit(tmp_path / "job.sh", tmp_path)


def test_without_slurm_the_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="the program sbatch is not here"):
        client.submit(tmp_path / "job.sh", tmp_path)
    assert client.left_jobs(tmp_path) == []


def test_submitting_from_within_a_job_passes_nothing_of_it_on(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    program(programs, "sbatch", "env > seen; echo '42;site'")
    monkeypatch.chdir(tmp_path)
    assert client.submit(tmp_path / "job.sh", tmp_path) == "42"
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "SLURM_CONF=" in seen
    assert not [name for name in ("SLURM_JOB_ID=", "SBATCH_PARTITION=", "SRUN_CPUS_PER_TASK=") if name in seen]


def test_the_lost_node_is_the_cause_and_its_cancelled_neighbour_is_not() -> None:
    lost, consequence = State("NODE_FAIL", 0, 1, "t4-0"), State("CANCELLED", 0, 15, "v100-0")
    assert worst([consequence, lost, State("COMPLETED")]) == lost
    assert worst([State("COMPLETED")]) is None
