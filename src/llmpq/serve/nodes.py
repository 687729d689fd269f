"""The stages of a run as one Slurm job over the plan's nodes, watched through files that the nodes share with this one."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmpq.errors import ServeError
from llmpq.serve.events import EventFileReader, event_path
from llmpq.serve.faults import Stage, StageLostError, cause, fault, silence
from llmpq.serve.launch import SLACK_S, OnEvent
from llmpq.slurm.run import NodesJob, Placement, nodes_job

EXCHANGE = "nodes"
GRACE_S = 5.0  # after a first failure, for the others' to arrive, so that the cause can be told from its consequences


def run_on_nodes(
    jobs: Sequence[dict[str, Any]],
    placement: Placement,
    name: str,
    log_dir: Path,
    *,
    load_timeout_s: float,
    timeout_s: float,
    on_event: OnEvent,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """What llmpq.serve.launch.run_stages does, with the stages on the nodes of ``placement``: one Slurm job, which never outlives this.

    The time in the queue is not limited; ``load_timeout_s`` begins when all nodes are there. Raises also SlurmError where Slurm refuses
    the job, and StageLostError where it ends it (a node is lost, the time is up, someone cancels it).
    """
    folder, logs = (log_dir / EXCHANGE).absolute(), log_dir.absolute()
    tasks = [
        {**job, "threads": placement.types[member["device"]]["cores"], "log": str(logs / f"stage-{job['rank']}.log")}
        for job, member in zip(jobs, placement.members, strict=True)
    ]
    stages = [Stage(job["rank"], job["title"], Path(task["log"])) for job, task in zip(jobs, tasks, strict=True)]
    with nodes_job(name, placement, tasks, "llmpq.serve.worker", folder, say) as (job, wait):
        watcher = _Watcher(job, stages, folder, on_event)
        try:
            done = watcher.watch(wait, load_timeout_s, timeout_s)
            job.settle()
            return done
        finally:
            job.end()
            watcher.keep_finished()


class _Watcher:
    def __init__(self, job: NodesJob, stages: Sequence[Stage], folder: Path, on_event: OnEvent) -> None:
        self._job, self._stages, self._on_event = job, stages, on_event
        self._readers = {stage.rank: EventFileReader(event_path(folder, stage.rank)) for stage in stages}
        self._serving = False

    def watch(self, wait: Callable[[], None], load_timeout_s: float, timeout_s: float) -> list[dict]:
        heard = time.monotonic()
        while not all(stage.done for stage in self._stages):
            wait()
            if self._take() or not (self._job.running or self._job.ended):
                heard = time.monotonic()
            if any(stage.failed for stage in self._stages) or self._job.ended:
                self._raise_failure(wait)
            patience = timeout_s + SLACK_S if self._serving else load_timeout_s
            if time.monotonic() - heard > patience:
                raise silence(self._stages, patience)
        return [stage.done or {} for stage in self._stages]

    def keep_finished(self) -> None:
        """Requests that finished before a failure was seen."""
        for stage in self._stages:
            for event in self._readers[stage.rank].read():
                if event["event"] == "finished":
                    with contextlib.suppress(ServeError):  # the failure under way is the one to report
                        self._on_event(stage.rank, event)

    def _take(self) -> bool:
        count = 0
        for stage in self._stages:
            for event in self._readers[stage.rank].read():
                count += 1
                if not stage.last_word(event):
                    self._serving = self._serving or event["event"] == "warm"
                    self._on_event(stage.rank, event)
        return count > 0

    def _raise_failure(self, wait: Callable[[], None]) -> None:
        """Name the fault once the others' words have arrived; return if they say that all went well."""
        until = time.monotonic() + GRACE_S
        while not cause(self._stages, certain=True) and time.monotonic() < until:
            wait()
            self._take()
            if all(stage.done for stage in self._stages):
                return
        self._job.look(now=True)
        if not any(stage.failed for stage in self._stages):
            silent = ", ".join(stage.title for stage in self._stages if stage.done is None)
            raise StageLostError(f"{self._job.failure()}\n{silent} did not finish")
        found = fault(self._stages)
        why = f"\n{self._job.failure()}" if any(state.ended and not state.good for state in self._job.states) else ""
        raise type(found)(f"{found}{why}")
