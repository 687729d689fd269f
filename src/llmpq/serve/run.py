"""The attempts of one serving run: what the journal has not yet, until it has everything."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq.errors import ServeError
from llmpq.progress import time_left
from llmpq.quant.layer_index import combined_digest
from llmpq.serve.faults import StageLostError
from llmpq.serve.job import Settings
from llmpq.serve.journal import Journal
from llmpq.serve.launch import run_stages
from llmpq.serve.nodes import run_on_nodes
from llmpq.slurm.run import Placement

BACKOFF_S = 1.0  # before the first automatic restart; doubled each time


@dataclass
class Run:
    """Serves the ``requests`` that the journal lacks, here or (``placement``) on nodes; ``attempted``, ``load_s`` and ``weights`` are those
    of the last attempt. ``name`` is for whoever looks at the queue."""

    jobs: Sequence[dict[str, Any]]
    requests: Sequence[Mapping[str, Any]]
    journal: Journal
    settings: Settings
    log_dir: Path
    say: Callable[[str], None]
    placement: Placement | None = None
    name: str = "serve"
    attempted: Sequence[Mapping[str, Any]] = ()
    restarts: int = 0
    load_s: float = 0.0
    _wanted_tokens: int = 0
    _warm_at: float = 0.0
    _weights: dict[int, list[str]] = field(default_factory=dict)

    @property
    def served(self) -> int:
        """Requests of the last attempt."""
        return len(self.attempted)

    def to_the_end(self) -> list[dict[str, Any]]:
        """Serve, starting again after a lost stage as often as allowed; returns the stages' reports of the last attempt."""
        while True:
            try:
                return self._attempt()
            except StageLostError as error:
                if self.restarts >= self.settings.max_restarts:
                    raise ServeError(f"{error}\n{self._kept()}; run the same command again to serve the missing ones") from None
                self.restarts += 1
                self.say(f"{error}\n{self._kept()}; restart {self.restarts} of {self.settings.max_restarts}")
                time.sleep(BACKOFF_S * 2 ** (self.restarts - 1))
            except (KeyboardInterrupt, SystemExit):
                self.say(f"stopped; {self._kept()}")
                raise

    def weights_sha256(self) -> str:
        """Digest of the layers and ends that were served, whatever the cut: the same weights evaluated in one piece give the same."""
        return combined_digest(line for _, lines in sorted(self._weights.items()) for line in lines)

    def _kept(self) -> str:
        return f"{len(self.journal.finished)} of {len(self.requests)} requests are finished and kept in {self.journal.path}"

    def _attempt(self) -> list[dict[str, Any]]:
        missing = [request for request in self.requests if request["id"] not in self.journal.finished]
        if not missing:  # a run that died between its last request and its figures: the results stand, the figures are taken again
            missing = list(self.requests[-self.settings.slots :])
            self.say(f"{self._kept()}, but nothing of how long they took; the last {len(missing)} are served again to measure")
        self.attempted, self.load_s, self._warm_at = missing, 0.0, 0.0
        self._wanted_tokens = sum(request["max_new_tokens"] for request in missing)
        jobs = [{**job, "requests": missing} if job["rank"] == 0 else job for job in self.jobs]
        patience = {"load_timeout_s": self.settings.load_timeout_s, "timeout_s": self.settings.timeout_s}
        if self.placement is not None:
            return run_on_nodes(jobs, self.placement, self.name, self.log_dir, **patience, on_event=self._on_event, say=self.say)
        return run_stages(jobs, self.log_dir, port=self.settings.port, **patience, on_event=self._on_event)

    def _on_event(self, rank: int, event: Mapping[str, Any]) -> None:
        if event["event"] == "finished":
            self.journal.append(event["requests"])
        elif event["event"] == "loaded":
            self.load_s = max(self.load_s, event["seconds"])
            self._weights[rank] = event["digest_lines"]
            self.say(f"{self.jobs[rank]['title']} loaded in {event['seconds']:.1f} s")
        elif event["event"] == "warm":
            self._warm_at = time.monotonic()
        elif event["event"] == "progress" and self._warm_at:
            self._say_progress(event["prompts"], event["tokens"])

    def _say_progress(self, prompts: int, tokens: int) -> None:
        seconds = time.monotonic() - self._warm_at
        finished = f"{len(self.journal.finished)} of {len(self.requests)} requests finished"
        if tokens:
            left = time_left(seconds, tokens, self._wanted_tokens)
            self.say(f"{tokens} of at most {self._wanted_tokens} tokens, {tokens / seconds:.1f} tokens/s, {left}; {finished}")
        elif prompts:
            left = time_left(seconds, prompts, self.served)
            self.say(f"prefill, {prompts} of {self.served} prompts read, {seconds:.0f} s, {left}; {finished}")
