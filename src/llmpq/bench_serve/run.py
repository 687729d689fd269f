"""Which measurements are wanted, those that are stored already left out; each is stored as soon as it is there."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq.bench.record import load, machine, now, revision
from llmpq.bench_serve import cases, record
from llmpq.bench_serve.environments import PeerMissing
from llmpq.bench_serve.materials import Models, ReferenceTokens, prompts
from llmpq.bench_serve.ours import run_ours
from llmpq.bench_serve.peers import PeerProcess, same_share
from llmpq.bench_serve.quality import perplexities, weights_digest
from llmpq.bench_serve.rates import measure_rates
from llmpq.bench_serve.record import OK, SKIPPED, Case, Line
from llmpq.errors import LlmpqError, first_line
from llmpq.sources import code_digest

# What a measurement of each part runs: a change there makes stored lines old, peers' too, so that what is compared was interleaved.
CODE = {
    "floor": ("llmpq.bench_serve.rates",),
    "peers": (
        "llmpq.serve.worker",
        "llmpq.serve.batch",
        "llmpq.bench_serve.ours",
        "llmpq.bench_serve.peers",
        "llmpq.bench_serve.materials",
    ),
    "quality": ("llmpq.evaluate.perplexity", "llmpq.model.stage", "llmpq.bench_serve.quality", "llmpq.bench_serve.cases"),
    "curves": ("llmpq.serve.worker", "llmpq.serve.batch", "llmpq.bench_serve.ours", "llmpq.bench_serve.materials"),
}


@dataclass(frozen=True)
class Settings:
    """Where things are, and which part is wanted; ``quantised`` are folders of layers and ends."""

    parts: Sequence[str]
    rounds: int
    systems: Sequence[str]
    batches: Sequence[int]
    threads: Sequence[int]
    curves: Sequence[str]
    checkpoint: Path
    quantised: Sequence[Path]
    texts: Sequence[Path]
    results: Path
    work: Path = Path("build/bench-serve")
    environments: Path = Path(".envs")
    lists: Path = Path("workflow/envs")
    again: bool = False


@dataclass
class Bench:
    """The parts, one method each; every line goes to ``settings.results`` at once, and to whoever watches."""

    settings: Settings
    say: Callable[[str], None] = print
    _stored: set[tuple[Any, ...]] = field(default_factory=set)
    _here: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Measure the wanted parts in their order."""
        known = [] if self.settings.again else record.read(self.settings.results)
        self._stored = {line.key for line in known if line.measured}
        self._here = {"revision": revision("serve", "model", "quant", "bench_serve"), "machine": machine()}
        for part in self.settings.parts:
            getattr(self, part)()

    def floor(self) -> None:
        """Rates of the machine with each number of threads."""
        code = code_digest(*CODE["floor"])
        for threads in self.settings.threads:
            cores = self._cores(threads)
            for number in range(self.settings.rounds):
                about = {"part": "floor", "code": code, "what": "", "case": Case(threads), "round": number}
                if self._has({**about, "system": "bandwidth"}):
                    continue
                before = self._before()
                rates = measure_rates(cores)
                for name, value in {**rates.operations, "bandwidth": rates.bandwidth}.items():
                    self._store(before, {**about, "system": name}, value=value)

    def peers(self) -> None:
        """Rounds in which everyone has a turn, forwards and backwards in turn; the other engines stay loaded, and stopped, in between."""
        code = self._code("peers")
        for threads in self.settings.threads:
            with contextlib.ExitStack() as stack:
                processes: dict[str, PeerProcess | str] = {}
                for batch in self.settings.batches:
                    turns = [turn for turn in cases.contest(batch, threads) if turn[1] in self.settings.systems]
                    warm: set[str] = set()
                    for number in range(self.settings.rounds):
                        for case, system in turns if number % 2 == 0 else turns[::-1]:
                            about = {"part": "peers", "code": code, "system": system, "what": "", "case": case, "round": number}
                            if self._has(about):
                                continue
                            if system in cases.OURS:
                                self._ours(about)
                            else:
                                self._peer(about, stack, processes, warm)

    def quality(self) -> None:
        """Perplexity of ours on every text, through the serving kernels."""
        settings, code = self.settings, code_digest(*CODE["quality"])
        for system in (cases.OURS[name] for name in settings.systems if name in cases.OURS):
            about: dict[str, Any] = {"part": "quality", "system": system.name, "case": Case(), "round": 0}
            try:
                about["code"] = f"{code}-{weights_digest(settings.checkpoint, settings.quantised, system)}"
                texts = [text for text in settings.texts if not self._has({**about, "what": text.stem})]
                before = self._before()
                found = perplexities(settings.checkpoint, settings.quantised, system, texts, len(self._cores(2))) if texts else {}
            except LlmpqError as error:
                self._store(self._before(), {"code": code, **about, "what": ""}, status=f"{SKIPPED}: {first_line(error)}")
                continue
            for text, value in found.items():
                self._store(before, {**about, "what": text}, value=value)

    def curves(self) -> None:
        """Throughput and memory as work grows."""
        code = self._code("curves")
        for number in range(self.settings.rounds):
            for curve in self.settings.curves:
                for case in cases.CURVES[curve]:
                    system = cases.CURVE_SYSTEM
                    about = {"part": "curves", "code": code, "system": system, "what": curve, "case": case, "round": number}
                    if not self._has(about):
                        self._ours(about)

    def _ours(self, about: dict[str, Any]) -> None:
        settings, case, system = self.settings, about["case"], cases.OURS[about["system"]]
        before = self._before()
        try:
            found = run_ours(
                settings.checkpoint,
                settings.quantised,
                system,
                self._prompts(case),
                case.new_tokens,
                stages=case.stages,
                threads=case.threads,
                slots=case.slots,
            )
        except LlmpqError as error:
            self._store(before, about, status=f"{SKIPPED}: {first_line(error)}")
            return
        measured = {key: getattr(found, key) for key in ("seconds", "prefill_s", "decode_s", "cpu_s", "load_s")}
        self._store(before, about, peaks=found.peak_bytes, same_tokens=self._same(about, found.tokens), **measured)

    def _peer(self, about: dict[str, Any], stack: contextlib.ExitStack, processes: dict[str, PeerProcess | str], warm: set[str]) -> None:
        """A turn of another engine, started at its first; a string in ``processes`` says why it cannot take part."""
        name, case = about["system"], about["case"]
        try:
            if name not in processes:
                processes[name] = stack.enter_context(self._start(cases.PEERS[name], self._cores(case.threads)))
            process = processes[name]
            if isinstance(process, str):
                return
            if name not in warm:
                process.warm_up(self._prompts(case))
                warm.add(name)
            before = self._before()
            found = process.run(self._prompts(case), case.new_tokens)
        except PeerMissing as error:
            processes[name] = first_line(error)
            self._store(self._before(), about, status=f"{SKIPPED}: {first_line(error)}")
            return
        measured: dict[str, Any] = {"seconds": found.seconds, "cpu_s": found.cpu_s, "load_s": process.load_s, "version": process.version}
        self._store(before, about, peaks=[found.peak_bytes], same_tokens=self._same(about, found.tokens), **measured)

    def _start(self, peer: cases.Peer, cores: list[int]) -> PeerProcess:
        home = peer.home(self.settings.environments, self.settings.lists)
        python = Path(sys.executable) if home is None else home.ready()
        model = Models(self.settings.checkpoint, self.settings.work).path(peer.model, python)
        self.say(f"{peer.engine} loads {model} on cores {', '.join(map(str, cores))}")
        return PeerProcess(python, peer.engine, model.absolute(), cores)

    def _same(self, about: dict[str, Any], tokens: list[list[int]]) -> float | None:
        kept, case = ReferenceTokens(self.settings.work, about["code"]), about["case"]
        reference = kept.read(case)
        if reference is None and about["system"] == cases.REFERENCE:
            kept.write(case, tokens)
            reference = tokens
        return None if reference is None else same_share(tokens, reference)

    def _prompts(self, case: Case) -> list[list[int]]:
        return prompts(self.settings.checkpoint, self.settings.texts[0], case.requests, case.prompt_tokens)

    def _code(self, part: str) -> str:
        lists = "".join(path.read_text(encoding="utf-8") for path in sorted(self.settings.lists.glob("*.txt"))) if part == "peers" else ""
        return hashlib.sha256((code_digest(*CODE[part]) + lists).encode()).hexdigest()[:16]

    def _cores(self, count: int) -> list[int]:
        return sorted(os.sched_getaffinity(0))[:count]

    def _has(self, about: dict[str, Any]) -> bool:
        return (about["part"], about["system"], about["what"], about["case"], about["round"], about["code"]) in self._stored

    def _before(self) -> dict[str, Any]:
        return {**self._here, "date": now(), "load": load()}

    def _store(self, before: dict[str, Any], about: dict[str, Any], *, status: str = OK, **measured: Any) -> None:
        line = Line(**before, **about, status=status, **measured)
        record.append(self.settings.results, line)
        self.say(shown(line))


def shown(line: Line) -> str:
    """A line as the bench prints it."""
    case = line.case
    sizes = f"{case.requests}×{case.prompt_tokens}+{case.new_tokens}" if case.requests else line.what
    title = f"{line.part:8} {line.system:32} {case.stages}×{case.threads} {sizes:12} {line.round}"
    if not line.measured:
        return f"{title}  {line.status}"
    return f"{title}  {line.value:.4g}" if line.seconds is None else f"{title}  {line.seconds:7.2f} s  {line.tokens_per_s:7.1f} tokens/s"
