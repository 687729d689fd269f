"""What the figures show, on data small enough to work out by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_experiment

from llmpq.report.experiment import Experiment, Run, load_experiment
from llmpq.report.figures import all_figures, costs, front, memory, plans, prediction, sensitivity, timeline
from llmpq.report.summary import summarise


def _bars(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.type == "bar" and trace.name == name)


def _plan_rows(*layers: tuple[int, str, str]) -> list[dict[str, Any]]:
    """(stage, device, option) per layer of one strategy."""
    return [
        {"strategy": "llmpq", "layer": layer, "option": option, "stage": stage, "device": device, "tokens_per_s": 10.0}
        for layer, (stage, device, option) in enumerate(layers)
    ]


def test_a_strip_joins_equal_neighbours_and_is_cut_between_devices() -> None:
    rows = _plan_rows((0, "a", "16"), (0, "a", "4"), (0, "a", "4"), (1, "b", "4"))
    figure = plans._draw(rows)
    four = _bars(figure, "4")
    assert [round(start) for start in four.base] == [1, 3]
    assert [round(length) for length in four.x] == [2, 1]
    assert [round(start) for start in _bars(figure, "b").base] == [3]


def test_one_option_has_one_colour_in_every_figure() -> None:
    strip = _bars(plans._draw(_plan_rows((0, "a", "16"), (0, "a", "w8a8"))), "w8a8").marker.color
    row = {"device": "a", "option": "w8a8", "micro_batch": 4, "decode_ms": 1.5}
    assert costs._draw([row]).data[0].marker.color == (strip,)


def test_memory_bars_end_at_the_predicted_total_and_the_budget_is_marked() -> None:
    mib = 2**20
    kinds = {"weights": 5, "kv": 3, "embedding": 2, "head": 0, "workspace": 1}
    row = {"device": "a", "budget_bytes": 20 * mib, "strategy": "llmpq", "used": 1, "measured_growth_bytes": 10 * mib}
    row |= {f"predicted_{kind}_bytes": size * mib for kind, size in kinds.items()}
    row |= {f"measured_{kind}_bytes": None for kind in ("weights", "kv", "embedding", "head")}
    figure = memory._draw([row])
    workspace = _bars(figure, "workspace")
    assert (workspace.base[0], workspace.x[0]) == (10, 1)
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 20
    assert figure.data[-1].x == (10,)


def test_sensitivity_is_logarithmic_and_leaves_zero_blank() -> None:
    rows = [
        {"layer": layer, "option": option, "omega": omega, "chosen": chosen}
        for layer, option, omega, chosen in [(0, "16", 0.0, 1), (1, "16", 0.0, 0), (0, "4", 0.01, 0), (1, "4", 0.1, 1)]
    ]
    heat, dots = sensitivity._draw(rows).data
    assert [list(line) for line in heat.z] == [[None, None], pytest.approx([-2.0, -1.0])]
    assert (list(dots.x), list(dots.y)) == ([0, 1], [0, 1])


def test_a_heat_map_without_any_damage_is_still_drawn() -> None:
    figure = sensitivity._draw([{"layer": 0, "option": "16", "omega": 0.0, "chosen": 1}])
    assert [trace.type for trace in figure.data] == ["scatter"]


def test_prediction_rows_carry_the_error_of_each_part() -> None:
    row = prediction._row("llmpq", "stage 0 (a)", "decode", 9.0, {"p10": 9.5, "p50": 10.0, "p90": 12.0})
    assert row["error_percent"] == pytest.approx(-10.0)
    figure = prediction._draw_diagonal([row])
    points = next(trace for trace in figure.data if trace.name == "decode")
    assert (points.x, points.y) == ((9.0,), (10.0,))
    assert (points.error_y.array, points.error_y.arrayminus) == ((2.0,), (0.5,))


def test_timeline_has_a_lane_per_stage_and_views_of_its_phases() -> None:
    rows = [
        {
            "stage": stage,
            "device": "ab"[stage],
            "what": what,
            "micro_batch": 0,
            "step": step,
            "start_ms": start,
            "duration_ms": 100.0,
            "call": step,
        }
        for what, step, start in [("prefill", 0, 0.0), *(("decode", step, 200.0 * step) for step in range(1, 11))]
        for stage in (0, 1)
    ]
    figure = timeline._draw(rows)
    assert list(figure.layout.yaxis.tickvals) == [0, 1]
    assert len(_bars(figure, "prefill").x) == 2
    assert len(_bars(figure, "decode").x) == 20
    views = {button.label: button.args[0]["xaxis.range"] for button in figure.layout.updatemenus[0].buttons}
    assert views["whole run"] == pytest.approx([0.0, 2.1])
    assert views["prefill"] == pytest.approx([0.0, 0.102])
    low, high = views["three decode rounds"]
    assert high - low == pytest.approx(3 * 1.9 / 10)


def test_a_long_run_is_cut_and_says_so() -> None:
    arguments = {"micro_batch": 0, "step": 0}
    events = [{"ph": "X", "cat": "decode", "pid": 0, "ts": 10.0 * index, "dur": 5.0, "args": arguments} for index in range(7000)]
    figure = timeline.run_timeline(Run("llmpq", {"stages": [{"device": "a"}]}, None, None, events), "emulated")
    assert len(figure.rows) == timeline.MOST_CALLS
    assert "the first 6,000 of 7,000 calls" in figure.caption


def _front_experiment(tmp_path: Path, budget: float | None) -> tuple[Experiment, dict[str, Any]]:
    paths = make_experiment(tmp_path, objective={"theta_ms": 5.0} if budget is None else {"quality_budget": budget})
    arguments = {name: value for name, value in paths.arguments().items() if name in ("problem", "indicator", "costs", "strategies")}
    experiment = load_experiment(paths.directory, **arguments)
    points = [{"tokens_per_s": speed, "omega_sum": omega, "gap": 0.001} for speed, omega in ((40.0, 0.1), (60.0, 0.3), (90.0, 0.8))]
    found = dataclasses.replace(experiment, front={"fronts": [{"memory_factor": 1.0, "infeasible": None, "points": points}]})
    return found, summarise(experiment)


def test_the_front_has_its_points_the_strategies_and_the_chosen_plan(tmp_path: Path) -> None:
    experiment, summary = _front_experiment(tmp_path, 1.0)
    figure = front.pareto_front(experiment, summary)
    assert figure is not None
    assert [row["omega_sum"] for row in figure.rows if row["strategy"] is None] == [0.1, 0.3, 0.8]
    assert [row["strategy"] for row in figure.rows if row["chosen"]] == ["llmpq"]
    line, plans = figure.draw(figure.rows).data
    assert (line.x, line.y, line.line.shape) == ((40.0, 60.0, 90.0), (0.1, 0.3, 0.8), "vh")
    chosen = next(run.plan for run in experiment.runs if run.strategy == "llmpq")
    at = plans.marker.symbol.index("diamond")
    assert (plans.x[at], plans.y[at]) == (chosen["predicted"]["tokens_per_s"], chosen["omega_sum"])
    assert plans.marker.symbol.count("diamond") == 1
    assert set(plans.text) == {"llmpq", "adabits", "pipeedge", "uniform"}


@pytest.mark.parametrize(("budget", "lines", "words"), [(1.0, 1, "dotted line"), (50.0, 0, "more than any plan"), (None, 0, "")])
def test_the_quality_budget_is_a_line_where_it_is_near(tmp_path: Path, budget: float | None, lines: int, words: str) -> None:
    figure = front.pareto_front(*_front_experiment(tmp_path, budget))
    assert figure is not None
    assert len(figure.draw(figure.rows).layout.shapes) == lines
    assert words in figure.caption


def test_without_a_front_there_is_no_figure_of_it(tmp_path: Path) -> None:
    experiment, summary = _front_experiment(tmp_path, 1.0)
    assert front.pareto_front(dataclasses.replace(experiment, front=None), summary) is None
    assert all_figures(experiment, summary)["front"][0].name == "pareto_front"
    assert all_figures(dataclasses.replace(experiment, front=None), summary)["front"] == []
