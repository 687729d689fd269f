"""What a run of the workflow leaves on disk about itself: which jobs started, finished or failed, and how many there are.

``results/.jobs/session.json`` describes the latest run, ``results/.jobs/<rule>.<names>.json`` the latest attempt at one job. From these
come the progress lines, the times shown in MLflow, and the stages that failed or were killed, which cannot report themselves.
"""

import fcntl
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ConfigError
from llmpq.heartbeat import Heartbeat
from llmpq.slurm.client import cancel, left_jobs

FOLDER = Path("results/.jobs")
# The jobs that MLflow shows as failed, a line each, so that the run that mends one tells it.
REPORTED = FOLDER / "reported"
HEARTBEAT = FOLDER / "heartbeat"  # by which jobs on other hosts know that the run is alive
_beating: Heartbeat | None = None
UNFINISHED = ("running", "failed", "interrupted")


def begin_session(experiments: Mapping[str, Any], total: int) -> None:
    """Called by the Snakefile before the first job: record what is to run, after telling MLflow of jobs that an earlier run left behind."""
    global _beating
    _end_left_jobs()
    known = read_session()
    if known is not None and "ended" not in known and any(marker["state"] in UNFINISHED for marker in markers()):
        _report_failures()
    for marker in markers():
        if marker["state"] in UNFINISHED:
            marker_path(marker["rule"], marker["wildcards"]).unlink(missing_ok=True)
    session = {"id": f"{platform.node()}-{os.getpid()}-{time.time_ns()}", "host": platform.node(), "pid": os.getpid(), "total": total}
    session["began"] = _began(os.getpid())
    artifacts.write_text(FOLDER / "session.json", json.dumps({**session, "started": 0, "experiments": dict(experiments)}))
    _beating = Heartbeat(HEARTBEAT).start()


def end_session(failed: bool = False) -> None:
    """Called by the Snakefile after the last job: tells MLflow, from the submitting host, of stages that failed or no longer do."""
    if _beating is not None:
        _beating.stop()
    if failed or REPORTED.is_file():
        _report_failures()
    known = read_session()
    if known is not None:
        artifacts.write_text(FOLDER / "session.json", json.dumps({**known, "ended": time.time()}))


def read_session() -> dict[str, Any] | None:
    """The latest run of the workflow in this folder, or None."""
    try:
        session: dict[str, Any] = json.loads((FOLDER / "session.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return session


def next_number() -> tuple[int, int]:
    """This job's number among those started by the latest run, and how many there are; (0, 0) outside a run."""
    with _locked():
        session = read_session()
        if session is None:
            return 0, 0
        session["started"] += 1
        artifacts.write_text(FOLDER / "session.json", json.dumps(session))
    return session["started"], session["total"]


def marker_path(rule: str, wildcards: Mapping[str, str]) -> Path:
    """Where the latest attempt at a job is recorded."""
    return FOLDER / f"{'.'.join([rule, *wildcards.values()])}.json"


def write_marker(rule: str, wildcards: Mapping[str, str], **fields: Any) -> None:
    """Record the state of a job (running, finished, failed, interrupted) with what is known about it."""
    path = marker_path(rule, wildcards)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and fields.get("state") != "running" else {}
    artifacts.write_text(path, json.dumps({**known, "rule": rule, "wildcards": dict(wildcards), **fields}))


def write_reported(names: Iterable[str]) -> None:
    """Remember which jobs MLflow shows as failed; no file where there are none."""
    lines = sorted(names)
    if lines:
        artifacts.write_text(REPORTED, "\n".join(lines) + "\n")
    else:
        REPORTED.unlink(missing_ok=True)


def markers() -> list[dict[str, Any]]:
    """The latest attempt at every job; one that cannot be read is left out."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if path.name != "session.json" and "rule" in document:
            found.append(document)
    return found


def _end_left_jobs() -> None:
    """Cancel Slurm jobs that an earlier run of this folder left when it was killed, so that nothing is done twice at a time."""
    if shutil.which("squeue") is None:
        return
    left = left_jobs(Path.cwd())
    if left:
        print(f"llmpq: Slurm jobs of an earlier run are cancelled: {', '.join(left)}", file=sys.stderr)
        cancel(*left)


def _report_failures() -> None:
    """In a process of its own: MLflow is slow to import, and its troubles must not hide those of the stage."""
    try:
        subprocess.run([sys.executable, "-m", "llmpq", "track", "--failures"], check=False, timeout=120)
    except subprocess.TimeoutExpired:
        print("llmpq: the failed stages could not be recorded in MLflow within 120 s", file=sys.stderr)


@contextmanager
def _locked() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def only_errors() -> None:
    """Let Snakemake speak only of what went wrong outside a job; each job says itself how it went, in one line."""
    said = (
        "RuleException",
        "Exiting because",
        "Shutting down",
        "Error in rule",
        "At least one job did not",
        "WorkflowError:\nAt least one job",
    )
    logging.getLogger("snakemake.logging").addFilter(
        lambda record: record.levelno >= logging.WARNING and not record.getMessage().lstrip().startswith(said)
    )


def one_line_errors() -> None:
    """Show a ConfigError that an input function raised as its one line, without Snakemake's description of rule and traceback."""

    def shorten(record: logging.LogRecord) -> bool:
        found = re.search(r"^InputFunctionException.*?^ *ConfigError: (.*?)\nWildcards:", record.getMessage(), re.DOTALL | re.MULTILINE)
        if found:
            record.msg, record.args = f"llmpq: error: {found[1]}", ()
        return True

    logging.getLogger("snakemake.logging").addFilter(shorten)


def take_over_lock() -> None:
    """Remove the lock that a killed run left in this folder; ConfigError where that run is still at work.

    Snakemake itself would ask for ``--unlock``, since it cannot know; here the process that held the lock is on record.
    """
    locks = list(Path(".snakemake/locks").glob("*.lock"))
    known = read_session()
    if not locks or known is None or known["host"] != platform.node() or "ended" in known:
        return
    # A run takes its lock before it writes its record, and updates the record with every job: a younger lock is another run's.
    if max(lock.stat().st_mtime for lock in locks) > (FOLDER / "session.json").stat().st_mtime:
        return
    if alive(known["pid"], known["began"]):
        raise ConfigError(f"another run (process {known['pid']}) is at work in this folder: wait for it, or stop it")
    for lock in locks:
        lock.unlink(missing_ok=True)
    print(f"llmpq: an earlier run (process {known['pid']}) was killed; going on where it stopped", file=sys.stderr)


def alive(pid: int, began: float | None = None) -> bool:
    """Whether process ``pid`` runs here, and is the one that began at ``began`` (clock ticks after boot; numbers are used again)."""
    found = _began(pid)
    return found is not None and began in (None, found)


def _began(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else float(fields[19])
