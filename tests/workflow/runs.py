"""Snakemake as a user runs it: a process in a folder of its own, with the prepared model and texts of the repository."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from process_cases import heed_interrupts, leave_nothing, processes

ROOT = Path(__file__).parents[2]
EXPERIMENT = "smoke"


@dataclass
class Ran:
    """How a run ended: exit code, everything it printed, seconds."""

    code: int
    text: str
    seconds: float


def command(*arguments: str, overrides: Sequence[str] = ()) -> list[str]:
    """The command of ``make run`` for the small experiment."""
    program = [str(Path(sys.executable).parent / "snakemake"), "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    quiet = ["--workflow-profile", "none", "--rerun-incomplete", "--quiet", "host", "progress", "reason", "rules"]
    listed = "[" + ",".join(f'"{override}"' for override in overrides) + "]"
    return [*program, *quiet, "--config", f"experiments={EXPERIMENT}", f"overrides={listed}", *arguments]


def environment() -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")}
    return {**found, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"}


def run(folder: Path, *arguments: str, overrides: Sequence[str] = (), timeout: float = 1700) -> Ran:
    """Run the small experiment (or what ``arguments`` name) to its end."""
    started = time.monotonic()
    done = subprocess.run(
        command(*arguments, overrides=overrides), cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout
    )
    return Ran(done.returncode, done.stdout + done.stderr, time.monotonic() - started)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A run that goes on meanwhile, in a process group of its own; none of its processes is left afterwards."""
    output = (folder / "run.txt").open("w", encoding="utf-8")
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    try:
        yield process
    finally:
        leave_nothing(process.pid)
        process.wait()
        output.close()


def workers(pid: int) -> list[psutil.Process]:
    """The serving processes that a run has started."""
    found = []
    for each in processes(pid):
        try:
            if "llmpq.serve.worker" in each.cmdline():
                found.append(each)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def mlflow_runs(folder: Path) -> dict[tuple[str, str | None], Any]:
    """Runs of the experiment in the folder's MLflow store, by (strategy, stage), those of the latest configuration."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.resolve()}/results/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(f"llmpq/{EXPERIMENT}")
    found = client.search_runs([experiment.experiment_id], max_results=2000)
    return {(run.data.tags["llmpq.strategy"], run.data.tags.get("llmpq.stage")): run for run in found}
