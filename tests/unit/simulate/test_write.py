"""The simulation stage: one file for all plans of an experiment, and the timeline of the first."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmpq import artifacts
from llmpq.config import compose
from llmpq.cost.data_sheets import write_data_sheet_problem
from llmpq.errors import ArtifactError
from llmpq.planning import write_plan
from llmpq.simulate.write import MOST_EVENTS, write_simulation

CONFIG = Path(__file__).parents[3] / "config"
STRATEGIES = ("offload", "even", "uniform")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of cluster 3, two batches of eight: `offload` has none, since the devices name no host memory."""
    folder = tmp_path_factory.mktemp("planned")
    chosen = compose(CONFIG, ["quick-3-today"], ["workload.requests=16", "workload.slots=8", "workload.new_tokens=20"])["quick-3-today"]
    groups = {key: chosen[key] for key in ("model", "cluster", "workload", "planner", "kernels")}
    write_data_sheet_problem(folder / "problem.json", name="pair", **groups)
    for strategy in STRATEGIES:
        write_plan(folder / "problem.json", folder / f"{strategy}.json", strategy, solver="highs", keep_infeasible=True)
    return folder


def simulated(folder: Path, out: Path) -> dict[str, Any]:
    plans = [folder / f"{strategy}.json" for strategy in STRATEGIES]
    return write_simulation(folder / "problem.json", plans, out / "simulation.json", out / "timeline.json", "pair")


def test_every_plan_has_its_times_and_what_has_none_says_why(planned: Path, tmp_path: Path) -> None:
    document = simulated(planned, tmp_path)
    assert document == artifacts.read(tmp_path / "simulation.json", "simulation")
    assert (document["source"], document["provenance"]["source"], document["tables"]) == ("simulated", "simulated", "catalogue")
    runs = {run["strategy"]: run for run in document["runs"]}
    assert list(runs) == list(STRATEGIES)
    assert runs["offload"]["status"] == "infeasible"
    for strategy in ("even", "uniform"):
        plan = artifacts.read(planned / f"{strategy}.json", "plan")
        run = runs[strategy]
        assert run["total_s"] == pytest.approx(plan["predicted"]["simulated_total_s"], rel=1e-4)
        assert (run["requests"], run["new_tokens"]) == (16, 16 * 20)
        assert run["tokens_per_s"] == pytest.approx(320 / run["total_s"])
        assert [stage["device"] for stage in run["stages"]] == [stage["device"] for stage in plan["stages"]]
        assert all(stage["prefill_s"] + stage["decode_s"] <= run["total_s"] * (1 + 1e-9) for stage in run["stages"])


def test_the_timeline_is_the_beginning_of_the_first_plan_that_there_is(planned: Path, tmp_path: Path) -> None:
    simulated(planned, tmp_path)
    trace = json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8"))
    assert (trace["otherData"]["strategy"], trace["otherData"]["source"]) == ("even", "simulated")
    calls = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert 0 < len(calls) <= MOST_EVENTS
    assert {call["cat"] for call in calls} >= {"prefill", "decode"}


def test_a_plan_of_another_problem_is_refused(planned: Path, tmp_path: Path) -> None:
    plan = artifacts.read(planned / "even.json", "plan")
    artifacts.write(tmp_path / "even.json", "plan", {**plan, "problem_sha256": "0" * 64}, source="catalogue")
    with pytest.raises(ArtifactError, match=r"even\.json: key 'problem_sha256'"):
        write_simulation(planned / "problem.json", [tmp_path / "even.json"], tmp_path / "simulation.json", tmp_path / "timeline.json")
    assert not (tmp_path / "simulation.json").exists()
