"""Problems of experiments on devices that are not here."""

from pathlib import Path

import pytest

from llmpq import artifacts
from llmpq.config import compose
from llmpq.cost import stand_in
from llmpq.cost.data_sheets import data_sheet_problem, write_data_sheet_problem
from llmpq.cost.paper import paper_problem, paper_rows
from llmpq.errors import ConfigError

CONFIG = Path(__file__).parents[3] / "config"


def groups(name: str, *overrides: str) -> dict[str, object]:
    found = compose(CONFIG, [name], overrides)[name]
    return {"name": name, **{key: found[key] for key in ("model", "cluster", "workload", "planner", "kernels")}}


ROWS = [(row, "2023") for row in paper_rows(CONFIG)] + [("paper-3", "today"), ("paper-6-lat", "today")]


@pytest.mark.parametrize(("row", "kernels"), ROWS)
def test_the_suite_asks_what_the_bench_of_the_planner_asks(row: str, kernels: str) -> None:
    assert data_sheet_problem(**groups(f"{row}-{kernels}")) == paper_problem(CONFIG, row, kernels)[0]


def test_settings_of_the_experiment_reach_the_problem() -> None:
    found = data_sheet_problem(
        **groups(
            "quick-3-today",
            "workload.requests=64",
            "planner.micro_batches.decode=[4,8]",
            "planner.objective={theta_ms: 5, quality_budget: null}",
            "cluster.ethernet_gbit_s=800",
        )
    )
    slow = data_sheet_problem(**groups("quick-3-today"))
    assert (found["workload"]["requests"], found["workload"]["slots"]) == (64, 32)
    assert found["micro_batches"] == {"decode": [4, 8]}
    assert found["objective"] == {"theta_ms": 5.0}
    assert max(link["bytes_per_ms"] for link in found["links"]) > max(link["bytes_per_ms"] for link in slow["links"])


def test_the_problem_says_that_its_damage_is_a_stand_in(tmp_path: Path) -> None:
    written = write_data_sheet_problem(tmp_path / "problem.json", **groups("quick-3-2023"))
    assert written == artifacts.read(tmp_path / "problem.json", "problem")
    assert written["source"] == written["provenance"]["source"] == "catalogue"
    assert stand_in.LABEL in written["description"]


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("quick-3-today", "model=smollm2-135m-instruct", "model.shape"),
        ("quick-3-today", "serve=continuous", "serve.schedule"),
        ("quick-3-today", "workload.prompt_tokens_min=16", "workload.prompt_tokens_min"),
        ("quick-3-today", "cluster.types.t4.source=emulated", "launch 'none' is for data-sheet devices alone"),
        ("quick-3-today", "kernels=2030", "kernels"),
        ("duo", "cluster.types.cpu-slow.source=catalogue", "use launch none"),
        ("duo", "suite=a b", "suite"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_runs(name: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose(CONFIG, [name], [override])
