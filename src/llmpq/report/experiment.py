"""Everything one experiment left behind, read, checked and checked against each other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ArtifactError, ConfigError

Document = dict[str, Any]


_CALL_KEYS = {"cat", "pid", "ts", "dur", "args"}
_ARGUMENT_KEYS = {"micro_batch", "step"}


@dataclass(frozen=True)
class Run:
    """One strategy of an experiment: its plan and, where it was served, what was measured, or else what was simulated."""

    strategy: str
    plan: Document
    serve: Document | None
    quality: Document | None
    timeline: list[Document]
    simulation: Document | None = None


@dataclass(frozen=True)
class Experiment:
    """The artifacts of one experiment.

    ``without_plan``: plan.json of strategies that have none to run. ``files`` maps every path that was read to its provenance.
    """

    name: str
    directory: Path
    problem: Document
    indicator: Document | None
    costs: list[Document]
    runs: list[Run]
    without_plan: list[Document]
    files: dict[Path, Document]
    explanation: Document | None = None
    front: Document | None = None

    @property
    def served(self) -> bool:
        """Whether the plans were served (else only predicted figures exist)."""
        return all(run.serve is not None for run in self.runs)

    @property
    def simulated(self) -> bool:
        """Whether the plans were simulated, since their devices are not here."""
        return all(run.simulation is not None for run in self.runs)

    @property
    def devices(self) -> list[Document]:
        """The problem's devices, in its order."""
        devices: list[Document] = self.problem["devices"]
        return devices


def load_experiment(
    directory: str | Path,
    *,
    problem: str | Path,
    indicator: str | Path | None,
    costs: Sequence[str | Path],
    strategies: Sequence[str],
    explanation: str | Path | None = None,
    front: str | Path | None = None,
    simulation: str | Path | None = None,
    served: bool = True,
) -> Experiment:
    """Read the artifacts of ``strategies`` under ``directory`` with the shared ones; raise ArtifactError for a missing or stale one.

    ``simulation`` (simulation.json, the trace beside it) stands for what was measured where the devices are not here; ``served`` false
    reads plans alone.
    """
    if not strategies:
        raise ConfigError(f"{directory}: no strategy to report on; name at least one")
    directory = Path(directory)
    reader = _Reader()
    problem_document = reader.read(problem, "problem")
    problem_digest = artifacts.body_digest(problem_document)
    plans = {strategy: _load_plan(reader, directory / strategy, strategy, problem_digest) for strategy in strategies}
    without = [plan for plan in plans.values() if planless.reason(plan) is not None]
    if len(without) == len(plans):
        raise ConfigError(f"{directory}: no strategy has a plan to report on; {planless.reason(without[0])}")
    planned = {strategy: plan for strategy, plan in plans.items() if planless.reason(plan) is None}
    if simulation is not None:
        runs = _load_simulated(reader, Path(simulation), planned)
    else:
        runs = [_load_run(reader, directory / strategy, strategy, plan, served) for strategy, plan in planned.items()]
    return Experiment(
        name=directory.name,
        directory=directory,
        problem=problem_document,
        indicator=reader.read(indicator, "indicator") if indicator is not None else None,
        costs=[reader.read(path, "cost") for path in costs],
        runs=runs,
        without_plan=without,
        explanation=_read_beside(reader, explanation, "explain", problem_digest),
        front=_read_beside(reader, front, "pareto", problem_digest),
        files=reader.files,
    )


class _Reader:
    """Reads artifacts and remembers where each came from."""

    def __init__(self) -> None:
        self.files: dict[Path, Document] = {}

    def read(self, path: str | Path, kind: str) -> Document:
        document = artifacts.read(path, kind)
        self.files[Path(path)] = document.get("provenance", {})
        return document


def _read_beside(reader: _Reader, path: str | Path | None, kind: str, problem_digest: str) -> Document | None:
    """A file that may be missing, of this very problem."""
    if path is None:
        return None
    document = reader.read(path, kind)
    _expect(Path(path), "problem_sha256", document["problem_sha256"], problem_digest)
    return document


def _load_plan(reader: _Reader, directory: Path, strategy: str, problem_digest: str) -> Document:
    plan = reader.read(directory / "plan.json", "plan")
    _expect(directory / "plan.json", "strategy", plan["strategy"], strategy)
    _expect(directory / "plan.json", "problem_sha256", plan["problem_sha256"], problem_digest)
    return plan


def _load_run(reader: _Reader, directory: Path, strategy: str, plan: Document, served: bool) -> Run:
    if not served:
        return Run(strategy, plan, None, None, [])
    serve = reader.read(directory / "serve.json", "serve")
    _expect(directory / "serve.json", "plan_sha256", serve["plan_sha256"], artifacts.body_digest(plan))
    quality = reader.read(directory / "quality.json", "quality")
    _expect(directory / "quality.json", "weights_sha256", quality["weights_sha256"], serve["weights_sha256"])
    return Run(strategy, plan, serve, quality, read_trace(directory / "timeline.json"))


def _load_simulated(reader: _Reader, path: Path, plans: dict[str, Document]) -> list[Run]:
    """The runs of simulation.json; the trace beside it is of the first of them that has a plan."""
    found = {run["strategy"]: run for run in reader.read(path, "simulation")["runs"]}
    timeline = read_trace(path.with_name("timeline.json"))
    traced = next((strategy for strategy, run in found.items() if "status" not in run), None)
    runs = []
    for strategy, plan in plans.items():
        if strategy not in found:
            raise ArtifactError(f"{path}: key 'runs': no strategy '{strategy}'; delete it and simulate again")
        _expect(path, f"runs[{strategy}].plan_sha256", found[strategy]["plan_sha256"], artifacts.body_digest(plan))
        runs.append(Run(strategy, plan, None, None, timeline if strategy == traced else [], found[strategy]))
    return runs


def _expect(path: Path, key: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: key '{key}' is {found[:16]!r}, but this experiment's file has {expected[:16]!r}; "
            "it belongs to an earlier run: delete it and run its stage again"
        )


def read_trace(path: Path) -> list[Document]:
    """The events of a Chrome trace file (``{"traceEvents": […]}``); raise ArtifactError when missing, truncated or of another form."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        events = document["traceEvents"]
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file (expected the Chrome trace of a serving run; run the stage that writes it)") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a complete JSON file ({error}); delete it and run its stage again") from None
    except (KeyError, TypeError):
        raise ArtifactError(f"{path}: key 'traceEvents' is missing; expected a Chrome trace") from None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ArtifactError(f"{path}: key 'traceEvents' must be a list of objects")
    for index, event in enumerate(events):
        if event.get("ph") == "X" and not (event.keys() >= _CALL_KEYS and event["args"].keys() >= _ARGUMENT_KEYS):
            wanted = ", ".join(sorted(_CALL_KEYS - {"args"} | {f"args.{key}" for key in _ARGUMENT_KEYS}))
            raise ArtifactError(f"{path}: key 'traceEvents[{index}]': a call needs {wanted}; run its stage again")
    return events
