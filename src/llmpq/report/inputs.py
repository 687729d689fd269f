"""Which files a report needs, found from an experiment's folder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError


def find_inputs(
    directory: Path,
    problem: Path | None = None,
    indicator: Path | None = None,
    costs: Sequence[Path] | None = None,
    strategies: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The inputs of write_report; what is not given is looked up: the problem in ``directory``, its indicator and costs in its provenance.

    ArtifactError when the folder holds no plan, or when a file that the problem was made from is gone.
    """
    problem = problem or directory / "problem.json"
    made_from = artifacts.read(problem, "problem").get("provenance", {}).get("inputs", {})
    named = [_located(name, directory) for name in made_from]
    found = strategies or sorted((plan.parent.name for plan in directory.glob("*/plan.json")), key=lambda name: (name != "llmpq", name))
    if not found:
        raise ArtifactError(f"{directory}: no <strategy>/plan.json in it; run the planning stage first")
    beside = {
        name: directory / f"{file}.json" for name, file in (("explanation", "explain"), ("front", "pareto"), ("simulation", "simulation"))
    }
    return {
        "problem": problem,
        "indicator": indicator or next((path for path in named if "indicators" in path.parts), None),
        "costs": list(costs) if costs else [path for path in named if "cost" in path.parts],
        "strategies": list(found),
        **{key: path for key, path in beside.items() if path.is_file()},
    }


def _located(name: str, directory: Path) -> Path:
    """A path of a provenance, relative to where the stage ran: here, or the folder that holds this experiment's ``results``."""
    path = Path(name)
    if path.is_absolute() or path.exists():
        return path
    bases = [parent.parent for parent in directory.absolute().parents if parent.name == "results"]
    return next((base / path for base in bases if (base / path).exists()), path)
