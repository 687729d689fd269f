"""An experiment on devices that are not here, planned by rules of thumb and simulated: real stages, small numbers."""

from pathlib import Path
from typing import Any

from llmpq.config import compose
from llmpq.cost.data_sheets import write_data_sheet_problem
from llmpq.planning import write_plan
from llmpq.simulate.write import write_simulation
from llmpq.suites.members import facts_of

CONFIG = Path(__file__).parents[3] / "config"
SMALL = ("workload.requests=4", "workload.slots=4", "workload.prompt_tokens=64", "workload.prompt_tokens_min=64", "workload.new_tokens=8")


def make_simulated(root: Path, experiment: str, strategies: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """(folder of the experiment below ``root``/results with problem, plans and simulation, its facts)."""
    chosen: dict[str, Any] = compose(CONFIG, [experiment], SMALL)[experiment]
    folder = root / "results" / "experiments" / experiment
    groups = {key: chosen[key] for key in ("model", "cluster", "workload", "planner", "kernels")}
    folder.mkdir(parents=True)
    write_data_sheet_problem(folder / "problem.json", name=experiment, **groups)
    plans = [folder / strategy / "plan.json" for strategy in strategies]
    for path in plans:
        write_plan(folder / "problem.json", path, path.parent.name, solver="highs", experiment=experiment, keep_infeasible=True)
    write_simulation(folder / "problem.json", plans, folder / "simulation.json", folder / "timeline.json", experiment)
    return folder, facts_of(chosen)


def report_arguments(folder: Path, strategies: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of write_report for what ``make_simulated`` made."""
    outputs = {"summary": "summary.json", "table": "summary.csv", "page": "report.html", "figures": "figures"}
    given: dict[str, Any] = {"problem": folder / "problem.json", "indicator": None, "costs": [], "strategies": list(strategies)}
    return {**given, "simulation": folder / "simulation.json", **{key: folder / name for key, name in outputs.items()}}
