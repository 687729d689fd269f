"""A file of requests served by the command ``llmpq serve`` as a user would start it, and looked at from outside."""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from llmpq import artifacts
from llmpq.bench_faults.hosts import Network
from llmpq.bench_faults.tiny_model import TINY_LLAMA, write_rounded_layers, write_tiny_llama
from llmpq.bench_serve.ours import Ours, cluster, plan_body
from llmpq.errors import LlmpqError
from llmpq.model.spec import ModelSpec
from llmpq.processes import HOST

STAGES, SLOTS, REQUESTS, OPTION = 2, 6, 18, "8"
LONGEST_PROMPT, LONGEST_ANSWER = 24, 40  # tokens
SLOWDOWN = 25.0  # so that a run lasts some seconds, most of them asleep
TIMEOUT_S, LOAD_TIMEOUT_S = 3.0, 30.0
DEADLINE_S = 300.0  # for one start of the command: far above all time-outs together


@dataclass(frozen=True)
class Model:
    """Where the tiny model and its layer files are."""

    checkpoint: Path
    layers: Path

    @classmethod
    def write(cls, folder: Path) -> "Model":
        """Make both in ``folder``."""
        checkpoint = write_tiny_llama(folder / "checkpoint")
        return cls(checkpoint, write_rounded_layers(checkpoint, folder / "layers", OPTION))


def request_rows(seed: int, count: int = REQUESTS, longest_answer: int = LONGEST_ANSWER) -> list[dict[str, Any]]:
    """``count`` greedy requests of random prompts and lengths, a line of the file each."""
    draw, vocabulary = random.Random(seed), TINY_LLAMA["vocab_size"]
    return [
        {
            "id": f"r{number}",
            "prompt_tokens": [draw.randrange(3, vocabulary) for _ in range(draw.randint(3, LONGEST_PROMPT))],
            "max_new_tokens": draw.randint(4, longest_answer),
        }
        for number in range(count)
    ]


@dataclass
class Served:
    """One run's files in ``folder``; settings may be changed between two starts. ``network``: a host for each stage."""

    folder: Path
    model: Model
    rows: Sequence[Mapping[str, Any]]
    schedule: str
    slots: int = SLOTS
    slowdown: float = SLOWDOWN
    max_restarts: int = 0
    load_timeout_s: float = LOAD_TIMEOUT_S
    port: int = 0
    network: Network | None = None
    lines: list[bytes] = field(default_factory=list)
    out: Path = Path()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = self.folder / "out"
        self.lines = [json.dumps(row).encode() for row in self.rows]

    def start(self) -> "Command":
        """Write the files and start the command."""
        spec = ModelSpec.from_directory(self.model.checkpoint)
        ours = Ours("bench-faults", OPTION, "32", "32")
        body = plan_body(spec, ours, STAGES, self.slots, LONGEST_PROMPT, LONGEST_ANSWER) | {"strategy": "bench-faults"}
        artifacts.write(self.folder / "plan.json", "plan", body, source="computed")
        (self.folder / "in.jsonl").write_bytes(b"\n".join(self.lines) + b"\n")
        (self.folder / "config.yaml").write_text(json.dumps(self._configuration()), encoding="utf-8")
        words = [sys.executable, "-m", "llmpq", "serve", self.folder / "plan.json", "--requests", self.folder / "in.jsonl"]
        words += ["--config", self.folder / "config.yaml", "--checkpoint", self.model.checkpoint]
        words += ["--quantised", self.model.layers, "--out", self.out / "out.jsonl"]
        return Command([str(word) for word in words])

    def _configuration(self) -> dict[str, Any]:
        devices = cluster(STAGES, 1)
        devices["types"]["cpu"]["slowdown"] = self.slowdown
        if self.network is not None:
            for member, host in zip(devices["members"], self.network.hosts, strict=True):
                member |= {"address": host.address, "prefix": host.prefix}
        workload = {"name": "bench-faults", "requests": len(self.rows), "slots": self.slots, "ignore_eos": False}
        workload |= {"prompt_tokens": LONGEST_PROMPT, "prompt_tokens_min": 1, "new_tokens": LONGEST_ANSWER}
        serve = {"name": "bench-faults", "schedule": self.schedule, "max_restarts": self.max_restarts}
        return {
            "name": "bench-faults",
            "cluster": devices,
            "workload": {**workload, "text": "wikipedia", "region": [0.0, 1.0], "seed": 0},
            "serve": {**serve, "timeout_s": TIMEOUT_S, "load_timeout_s": self.load_timeout_s},
            "backend": {"name": "native", "margins": True, "address": self.network.address if self.network else HOST, "port": self.port},
        }

    def results(self) -> list[dict[str, Any]]:
        """The lines of the results, none where they are not written yet."""
        path = self.out / "out.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def kept(self) -> int:
        """How many finished requests the journal holds, read beside a running command."""
        journals = self.out.glob("out.journal/journal-*.jsonl")
        with contextlib.suppress(FileNotFoundError):  # removed when the results are written
            return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in journals)
        return len(self.rows)


class Command:
    """The command at work; a context manager that leaves none of its processes behind.

    ``said`` is what it printed so far, ``heard`` when, on the monotonic clock. ``mapped`` are the files of /dev/shm that its stages had
    mapped when they were looked at.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.pid = self._process.pid
        self.said: list[str] = []
        self.heard: list[float] = []
        self.mapped: set[str] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.heard.append(time.monotonic())
            self.said.append(line.rstrip("\n"))

    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: int) -> None:
        """Send the command itself a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int | None:
        """Its exit status; None where it has none after ``timeout_s``."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(5)
        return code

    def count(self, words: str) -> int:
        """How many lines with ``words`` it has printed."""
        return sum(words in line for line in list(self.said))

    def time_of(self, words: str, number: int) -> float:
        """When it printed the ``number``-th (from 1) line with ``words``."""
        return [at for at, line in zip(self.heard, self.said, strict=False) if words in line][number - 1]

    def text(self) -> str:
        return "\n".join(self.said)

    def stages(self) -> list[psutil.Process]:
        """Its running stage processes by rank."""
        try:
            return self._stages(psutil.Process(self.pid).children())
        except psutil.NoSuchProcess:
            return []

    def _stages(self, among: Iterable[psutil.Process]) -> list[psutil.Process]:
        found = {}
        for process in among:
            try:
                words = process.cmdline()
                if "llmpq.serve.worker" in words and words[-3] == str(self.pid) and process.status() != psutil.STATUS_ZOMBIE:
                    found[int(words[-1])] = process
                    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
                    self.mapped |= {line[line.index("/dev/shm/") :] for line in maps.splitlines() if "/dev/shm/" in line}
            except (psutil.Error, OSError):
                continue
        return [found[rank] for rank in sorted(found)]

    def leftovers(self, within_s: float = 5.0) -> list[str]:
        """Stages, wherever they are, that outlive the command by more than ``within_s``, and shared memory of theirs."""
        until = time.monotonic() + within_s
        while (alive := self._stages(psutil.process_iter())) and time.monotonic() < until:
            time.sleep(0.1)
        files = [name for name in self.mapped if Path(name).exists()]
        return [*(f"process {process.pid} is left" for process in alive), *(f"{name} is left" for name in files)]

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.ended():
            self._process.kill()
            self._process.wait()
        for stage in self._stages(psutil.process_iter()):
            with contextlib.suppress(psutil.NoSuchProcess):
                stage.kill()


@dataclass(frozen=True)
class Reference:
    """The tokens of each request without a fault, with every token's margin; seconds from the stages' start until all had loaded."""

    tokens: dict[str, list[int]]
    margins: dict[str, list[float]]
    load_s: float

    @classmethod
    def take(cls, served: Served, timeout_s: float = DEADLINE_S) -> "Reference":
        """Serve once, undisturbed. Raises LlmpqError where that fails."""
        with replace(served, load_timeout_s=timeout_s).start() as command:  # however busy the machine
            while len(command.stages()) < STAGES and not command.ended():
                time.sleep(0.05)
            began = time.monotonic()
            code = command.wait(timeout_s)
        if code != 0:
            raise LlmpqError(f"{served.folder}: the undisturbed run ended with status {code}: {command.text()}")
        rows = served.results()
        tokens, margins = ({row["id"]: row[key] for row in rows} for key in ("tokens", "margins"))
        return cls(tokens, margins, command.time_of(" loaded in ", STAGES) - began)
