"""The other engines as processes: started once, asked in turn, and stopped (SIGSTOP) while it is not their turn.

An engine's threads may spin when they have nothing to do; a stopped process does not, so that whoever is measured has the machine to
itself. Processor seconds and peak memory are those of the process and all below it, read by the one who asks.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llmpq.bench_serve import peer_worker
from llmpq.bench_serve.environments import PeerMissing
from llmpq.bench_serve.memory import cpu_s, family, forget_peak, peak_bytes

LOAD_TIMEOUT_S, RUN_TIMEOUT_S = 1800.0, 1800.0
WARM_TOKENS = 4  # new tokens a prompt before anything is measured


@dataclass(frozen=True)
class Answer:
    """One measured run."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    tokens: list[list[int]]


class PeerProcess:
    """``engine`` with ``model`` on ``cores``, in the environment of ``python``; PeerMissing where it does not start.

    ``load_s`` and ``version`` are what it said of itself. To be used with ``with``: stopped at once, and killed at the end.
    """

    def __init__(self, python: Path, engine: str, model: Path, cores: Sequence[int]) -> None:
        self.engine = engine
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed by close()
        job = {"engine": engine, "model": str(model), "cores": list(cores)}
        # isolated: nothing of this process's packages, nor the program's own folder, is in its way
        command = [str(python), "-I", str(Path(peer_worker.__file__).absolute()), json.dumps(job)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
            )
        except OSError as error:
            raise PeerMissing(f"{engine}: {python} does not start: {error.strerror}") from None
        try:
            hello = self._read(LOAD_TIMEOUT_S)
            self.version, self.load_s = str(hello["version"]), float(hello["load_s"])
            self.pause()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def warm_up(self, prompts: Sequence[Sequence[int]]) -> None:
        """A short run of the same shape, not measured."""
        self.run(prompts, WARM_TOKENS)

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Answer:
        """Generate; the process runs for this long only. PeerMissing with what it said where it fails."""
        self._signal(signal.SIGCONT)
        try:
            members = family(self._process.pid)
            for member in members:
                forget_peak(member.pid)
            before = cpu_s(members)
            self._write({"prompts": [list(ids) for ids in prompts], "new_tokens": new_tokens})
            found = self._read(RUN_TIMEOUT_S)
            members = family(self._process.pid)
            used = cpu_s(members) - before
            if [len(row) for row in found["tokens"]] != [new_tokens] * len(prompts):
                lengths = sorted({len(row) for row in found["tokens"]})
                raise PeerMissing(f"{self.engine}: {len(found['tokens'])} rows of {lengths} tokens, not {len(prompts)} of {new_tokens}")
            return Answer(float(found["seconds"]), used, sum(peak_bytes(member.pid) for member in members), found["tokens"])
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop it, and whatever it has started, until the next question."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Kill it, and whatever it has started."""
        members = family(self._process.pid)
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _signal(self, number: signal.Signals) -> None:
        for member in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)

    def _write(self, question: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why it is gone
            print(json.dumps(question), file=self._process.stdin, flush=True)

    def _read(self, patience_s: float) -> dict[str, Any]:
        """The next line; PeerMissing for an error, the end of the process, or a silence longer than ``patience_s``."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(patience_s):
                raise PeerMissing(f"{self.engine}: no answer within {patience_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerMissing(f"{self.engine}: its process ended ({self._last_words()})")
        answer = dict(json.loads(line))
        if "error" in answer:
            raise PeerMissing(f"{self.engine}: {str(answer['error'])[:300]}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


def same_share(tokens: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> float:
    """Share of equal tokens, place by place: two greedy runs of one model part for good at the first near-tie that falls differently."""
    pairs = [(one, other) for row, rows in zip(tokens, others, strict=True) for one, other in zip(row, rows, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)
