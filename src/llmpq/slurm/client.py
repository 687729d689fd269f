"""Slurm's own programs: submit a job, ask how its components are, cancel it, and find what an earlier run has left."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmpq.errors import LlmpqError, first_line

TIMEOUT_S = 60.0  # a controller under load answers late
_OWN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
_KEPT = ("SLURM_CONF",)
_ENDED = re.compile(
    r"COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|BOOT_FAIL|DEADLINE|REVOKED|SPECIAL_EXIT|LAUNCH_FAILED"
)
_FIELD = re.compile(r"(\w[\w/:]*)=(\S*)")
_EXECUTOR_NAME = re.compile(r"(\w+_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SlurmError(LlmpqError):
    """Slurm refused something, cannot be reached, or ended a job."""


@dataclass(frozen=True)
class State:
    """How a component of a job is: Slurm's word for it, its exit code, signal and nodes, and why it waits or ended."""

    state: str
    code: int = 0
    signal: int = 0
    nodes: str = ""
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return _ENDED.match(self.state) is not None

    @property
    def good(self) -> bool:
        """Whether it did all that it should."""
        return self.state == "COMPLETED" and self.code == 0 and self.signal == 0

    def __str__(self) -> str:
        exit_code = f", exit code {self.code}" if self.code else f", signal {self.signal}" if self.signal else ""
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"{self.state}{reason}{exit_code}{f' on {self.nodes}' if self.nodes else ''}"


def clean_environment() -> dict[str, str]:
    """This process's environment without what a job that it may itself run in has set: that would change what is submitted."""
    return {key: value for key, value in os.environ.items() if key in _KEPT or not key.startswith(_OWN)}


def submit(script: Path, folder: Path) -> str:
    """Submit a batch script that runs in ``folder``; returns the job's id. Raises SlurmError with what sbatch says."""
    done = _call("sbatch", "--parsable", f"--chdir={folder}", str(script))
    if done.returncode != 0:
        raise SlurmError(f"sbatch refused the job ({script}): {_said(done)}")
    return done.stdout.strip().splitlines()[-1].split(";")[0]


def states(job: str) -> list[State] | None:
    """The states of all components of a job; none when Slurm has forgotten it, None when it does not answer (ask again)."""
    done = _call("scontrol", "show", "job", "--oneliner", job)
    if done.returncode == 0:
        return [_state(line) for line in done.stdout.splitlines() if line.strip()]
    if "Invalid job id" not in done.stderr:
        return None
    kept = _call("sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode,NodeList", f"--jobs={job}")
    return [_accounted(line) for line in kept.stdout.splitlines() if line.strip()] if kept.returncode == 0 else []


def cancel(*jobs: str) -> None:
    """End jobs, with all their components and processes; jobs that have ended already are no error."""
    if jobs:
        _call("scancel", "--quiet", *jobs)


def left_jobs(folder: Path) -> list[str]:
    """Ids of this user's jobs that work in ``folder`` and were submitted by Snakemake, which names them by a number of its own.

    Those of the launcher (llmpq.slurm.run) are not among them: they end with it.
    """
    try:
        done = _call("squeue", "--me", "--noheader", "--format=%i|%j|%Z")
    except SlurmError:
        return []
    found = set()
    for line in done.stdout.splitlines():
        job, name, where = line.split("|", 2)
        if where == str(folder) and _EXECUTOR_NAME.fullmatch(name):
            found.add(job)
    return sorted(found)


def _call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=clean_environment())
    except FileNotFoundError:
        raise SlurmError(f"the program {arguments[0]} is not here: run this on a node from which jobs can be submitted") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 1, "", f"no answer from {arguments[0]} in {TIMEOUT_S:g} s")
    except OSError as error:
        raise SlurmError(f"{arguments[0]} cannot be run: {first_line(error)}") from None


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    return "; ".join(line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()) or f"status {done.returncode}"


def _state(line: str) -> State:
    fields = dict(_FIELD.findall(line))
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    nodes = fields.get("NodeList", "")
    return State(fields["JobState"], int(code), int(signal or 0), "" if nodes == "(null)" else nodes, fields.get("Reason", ""))


def _accounted(line: str) -> State:
    state, exit_code, nodes = line.split("|")[:3]
    code, _, signal = exit_code.partition(":")
    return State(state.split()[0], int(code), int(signal or 0), nodes)


def worst(found: Sequence[State]) -> State | None:
    """The component that says most about why a job did not do well; None where all did."""
    bad = [state for state in found if not state.good]
    order = ("NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED", "CANCELLED", "FAILED")
    return min(bad, key=lambda state: order.index(state.state) if state.state in order else len(order), default=None)
