"""What is measured: real small cases; stored ones are left out, a changed planner's or problem's are not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llmpq.bench import cases, record, run, textbook
from llmpq.bench.large import large_problem, layers_that_fit
from llmpq.bench.planning import plan_case
from llmpq.cli import main
from llmpq.plan.problem import Problem

CONFIG = Path(__file__).parents[3] / "config"
SMALL = "paper-1-lat"  # one device: planned in a fraction of a second


def settings(**changes: Any) -> run.Settings:
    return run.Settings(**{"kind": "plan", "rows": [SMALL], "modes": ["theta"], "solvers": ["highs"], **changes})


def test_a_result_is_stored_and_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    first = run.measure(CONFIG, settings(), results)
    assert record.read(results) == first
    assert (first[0].status, first[0].case, first[0].time_limit_s) == ("optimal", "paper-1-lat-2023", 30.0)
    assert first[0].bound_ms is not None
    assert first[0].objective_ms is not None
    assert first[0].gap == pytest.approx(1 - first[0].bound_ms / first[0].objective_ms, abs=1e-9)
    assert run.measure(CONFIG, settings(), results) == []
    assert "stored already" in capsys.readouterr().out
    assert len(run.measure(CONFIG, settings(again=True), results)) == 1
    assert len(record.read(results)) == 2


@pytest.mark.parametrize("change", [{"code": "older"}, {"problem": "other"}, {"time_limit_s": 31.0}])
def test_a_stored_line_of_another_planner_problem_or_limit_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    results, calls = tmp_path / "results.jsonl", []
    stored = run.measure(CONFIG, settings(), results)[0]
    results.write_text("", encoding="utf-8")
    record.append(results, dataclasses.replace(stored, **change))
    monkeypatch.setattr(run, "_measured", lambda *arguments: calls.append(arguments))
    run.measure(CONFIG, settings(), results)
    assert len(calls) == 1


def test_results_stored_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    real = run._measured

    def fails_on_the_second(body: dict[str, Any], known: dict[str, Any], given: run.Settings) -> Any:
        if known["mode"] != "theta":
            raise KeyboardInterrupt
        return real(body, known, given)

    monkeypatch.setattr(run, "_measured", fails_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.measure(CONFIG, settings(modes=["theta", "budget 1"]), results)
    assert [line.mode for line in record.read(results)] == ["theta"]


def test_textbook_lines_are_one_a_candidate_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    run.measure(CONFIG, settings(kind="textbook", draws=1), results)
    more = run.measure(CONFIG, settings(kind="textbook", draws=2), results)
    assert [line.draw for line in more] == [1]
    stored = record.read(results)
    assert [(line.draw, line.seed, line.time_limit_s) for line in stored] == [(0, 0, 60.0), (1, 0, 60.0)]
    for line in stored:
        assert line.counts is not None
        assert line.status == line.counts.status
        if line.status == "optimal":
            assert line.objective_ms == pytest.approx(line.counts.objective_ms, rel=2e-3)


def test_transfer_is_stored_without_a_solver(tmp_path: Path) -> None:
    found = run.measure(CONFIG, settings(kind="transfer"), tmp_path / "results.jsonl")[0]
    assert (found.kind, found.solver, found.status, found.bound_ms) == ("transfer", "none", "heuristic", None)


def test_the_gap_of_the_order_is_that_of_the_plans_own_program() -> None:
    body = cases.problem_of(CONFIG, "24x2-2", "2023", "theta")
    body = {**body, "workload": {**body["workload"], "requests": 4, "slots": 4}, "micro_batches": {"prefill": [1, 2, 4], "decode": [2, 4]}}
    found = plan_case(body, "llmpq", "highs", 30.0, 1e-3, order_gap=True)
    assert found["status"] == "optimal"
    # The order's own bound is at least as good as one over all orders, but for what both leave open.
    assert 0 <= found["order_gap"] <= found["gap"] + 1e-3 + 1e-6
    assert "order_gap" not in plan_case(body, "llmpq", "highs", 30.0, 1e-3)


def test_the_draw_is_a_permutation_that_the_seed_alone_decides() -> None:
    problem = Problem.from_document(cases.problem_of(CONFIG, SMALL, "2023", "theta"))
    count = textbook.drawn(problem, 0, 0)[1]

    def sequence(seed: int) -> list[tuple[Any, ...]]:
        found = (textbook.drawn(problem, draw, seed)[0] for draw in range(count))
        return [(candidate.order, candidate.batches) for candidate in found]

    assert sequence(0) == sequence(0)
    assert sequence(0) != sequence(1)
    assert len(set(sequence(0))) == count
    with pytest.raises(IndexError):
        textbook.drawn(problem, count, 0)


def test_limits_are_the_targets() -> None:
    limits = {(row, solver): cases.time_limit_s(row, solver) for row in ("paper-3", "paper-7", "96x16-4") for solver in ("highs", "glpk")}
    assert list(limits.values()) == [30.0, 90.0, 30.0, 120.0, 300.0, 300.0]


def test_named_rows_are_spelled_out() -> None:
    assert cases.rows_of(None) == list(cases.ROWS)
    assert cases.rows_of("curve,paper-3") == [*cases.CURVE, "paper-3"]
    assert len(cases.CURVE) == 12


@pytest.mark.parametrize("row", [*cases.CURVE, *cases.LARGE])
def test_a_size_is_as_wide_as_fits(row: str) -> None:
    layers, devices, kinds = map(int, cases.SIZE.fullmatch(row).groups())  # type: ignore[union-attr]
    body = large_problem(CONFIG, layers, devices, kinds, "2023", {"theta_ms": 1.0})
    assert len(body["devices"]) == devices
    assert layers_that_fit(body) >= layers
    assert row not in cases.LARGE or body["model"]["name"].endswith(" 9216 wide")


def test_the_command_stores_and_writes_the_page_and_can_write_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "results.jsonl", tmp_path / "page.md"
    places = ["--config", str(CONFIG), "--results", str(results), "--out", str(out)]
    assert main(["bench-plan", "--kind", "transfer", "--rows", SMALL, "--modes", "theta", *places]) == 0
    assert "| paper-1-lat-2023 | theta |" in out.read_text(encoding="utf-8")
    written = out.read_text(encoding="utf-8")
    out.unlink()
    monkeypatch.setattr(run, "measure", lambda *arguments: pytest.fail("measured"))
    assert main(["bench-plan", "--render-only", *places]) == 0
    assert out.read_text(encoding="utf-8") == written
    assert len(results.read_text(encoding="utf-8").splitlines()) == 1
