"""One Slurm job for several processes on unequal nodes, from its submission to its end; it never outlives whoever waits for it."""

import contextlib
import json
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.heartbeat import Heartbeat
from llmpq.processes import heed_signal, signals
from llmpq.slurm import client
from llmpq.slurm.client import State
from llmpq.slurm.script import Component, batch_script, components, hosts_text, task_order
from llmpq.slurm.task import HEARTBEAT, task_file

LOOK_S = 0.2  # between two looks at what the processes have written
ASK_S = 2.0  # between two questions to the controller
END_S = 30.0  # for a job whose processes are done, or that is cancelled, to be gone
OWN_NAME = "llmpq-"
_SUBMITTED = "job.json"


@dataclass(frozen=True)
class Placement:
    """Which members of a cluster run a process each, in this order, and how Slurm is asked for them."""

    members: Sequence[Mapping[str, Any]]
    types: Mapping[str, Mapping[str, Any]]
    launch: str
    site: Mapping[str, Any]

    def components(self) -> list[Component]:
        return components(self.members, self.types, self.launch)


@dataclass
class NodesJob:
    """A submitted job; ``states`` are those of its components when Slurm was last asked."""

    name: str
    folder: Path
    say: Callable[[str], None]
    id: str = ""
    states: list[State] = field(default_factory=list)
    _answered: bool = False
    _asked: float = 0.0
    _said: str = ""

    @property
    def running(self) -> bool:
        """Whether all components have begun."""
        return bool(self.states) and all(state.state in ("RUNNING", "COMPLETING") or state.ended for state in self.states)

    @property
    def ended(self) -> bool:
        """Whether nothing of it will run any more; a job that Slurm has forgotten has ended too."""
        return self._answered and all(state.ended for state in self.states)

    def look(self, now: bool = False) -> None:
        """Ask Slurm, if the last answer is older than ASK_S or ``now``, and say what has changed."""
        if not now and time.monotonic() - self._asked < ASK_S:
            return
        self._asked = time.monotonic()
        found = client.states(self.id)
        if found is None:
            return  # the controller is busy or restarts: its jobs go on meanwhile
        self.states, self._answered = found, True
        summary = "; ".join(dict.fromkeys(map(str, found))) or "unknown to Slurm"
        if summary != self._said:
            self._said = summary
            self.say(f"Slurm job {self.id}: {summary}")

    def failure(self) -> str:
        """Why the job did not do well, in Slurm's words, with the end of what its script wrote."""
        bad = client.worst(self.states)
        return f"Slurm job {self.id} ({self.name}): {bad or 'ended'}{tail(self.folder / 'job.log')}"

    def settle(self) -> None:
        """Wait until Slurm says that it is over, which takes it a moment when all processes have ended."""
        deadline = time.monotonic() + END_S
        self.look(now=True)
        while not self.ended and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self.look(now=True)

    def end(self) -> None:
        """Cancel what is left of it and wait until Slurm says that it is gone."""
        self.look(now=True)
        if not self.ended:
            client.cancel(self.id)
            self.settle()


@contextlib.contextmanager
def nodes_job(
    name: str, placement: Placement, tasks: Sequence[Mapping[str, Any]], module: str, folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[NodesJob, Callable[[], None]]]:
    """Submit ``python -m MODULE --task FOLDER`` for each of ``tasks`` (the members' order); yields the job and ``wait``.

    ``wait()`` sleeps until the next look, keeps the heartbeat going, asks Slurm now and then, and turns a signal into KeyboardInterrupt or
    SystemExit. Whatever happens in the block, the job is over afterwards. A job that an earlier run left in ``folder``, which must be
    on a file system that all nodes share, is cancelled first. Raises SlurmError where Slurm refuses the job.
    """
    folder = folder.absolute()
    job = NodesJob(f"{OWN_NAME}{name}", folder, say)
    _end_earlier(folder, say)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = placement.components()
    for number, index in enumerate(task_order(found)):
        artifacts.write_text(task_file(folder, number), json.dumps(tasks[index]))
    command = [sys.executable, "-m", module, "--task", str(folder)]
    script, hosts = folder / "job.sh", folder / "hosts"
    artifacts.write_text(hosts, hosts_text(found))
    artifacts.write_text(script, batch_script(job.name, found, placement.site, command, folder / "job.log", hosts))
    heartbeat = Heartbeat(folder / HEARTBEAT)
    with signals() as wake:
        heartbeat.beat()
        job.id = client.submit(script, Path.cwd())
        try:
            artifacts.write_text(folder / _SUBMITTED, json.dumps({"id": job.id, "name": job.name}))

            def wait() -> None:
                if select.select([wake], [], [], LOOK_S)[0]:
                    heed_signal(wake)
                heartbeat.beat()
                job.look()

            job.look(now=True)
            yield job, wait
        finally:
            job.end()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, after a line that names it; nothing where there are none."""
    with contextlib.suppress(OSError):
        found = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:]
        if found:
            return f"\n{log} ends:\n" + "\n".join(f"  {line}" for line in found)
    return ""


def _end_earlier(folder: Path, say: Callable[[str], None]) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        earlier = json.loads((folder / _SUBMITTED).read_text(encoding="utf-8"))
        left = NodesJob(str(earlier["name"]), folder, say, str(earlier["id"]))
        left.look(now=True)
        if not left.ended:
            say(f"Slurm job {left.id} of an earlier run is still there; it is cancelled")
            left.end()
