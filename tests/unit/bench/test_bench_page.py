"""The page: what it says of the targets follows from the stored lines."""

from pathlib import Path

import pytest
from bench_records import made, textbook_line

from llmpq.bench import tables, textbook_table
from llmpq.bench.page import page, write_page
from llmpq.bench.textbook import extrapolated_s
from llmpq.commands import bench_plan
from llmpq.errors import LlmpqError

CASES = [f"paper-{number}-2023" for number in range(3, 8)]


def cells(text: str, start: str) -> list[str]:
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_highs_targets_are_thirty_seconds_each_and_a_median_of_eight() -> None:
    own = [made(case=case, seconds=seconds) for case, seconds in zip(CASES, (1.0, 2.0, 9.0, 29.9, 30.2), strict=True)]
    sentence = tables.target_sentence(own, "highs")
    assert sentence.startswith("highs: 4 of 5 measured of 48 wanted meet the target")
    assert "median 9.0 s (target 8 s: missed)" in sentence
    assert sentence.endswith("Not met: paper-7 theta.")


def test_a_result_that_is_not_proved_misses_however_quick() -> None:
    assert tables.meets(made(seconds=3.0))
    assert not tables.meets(made(seconds=3.0, gap=0.002))
    assert tables.meets(made(seconds=3.0, gap=None, objective_ms=None, status="infeasible: no plan"))


@pytest.mark.parametrize(
    ("case", "seconds", "gap", "met"),
    [
        ("paper-5-2023", 89.0, 1e-3, True),
        ("paper-5-2023", 91.0, 1e-3, False),
        ("paper-5-2023", 89.0, 0.015, False),
        ("paper-7-2023", 120.4, 0.015, True),
        ("paper-7-2023", 120.4, 0.025, False),
        ("paper-8-2023", 140.0, 0.015, False),
    ],
)
def test_glpk_has_more_time_and_on_two_clusters_a_wider_gap(case: str, seconds: float, gap: float, met: bool) -> None:
    assert tables.meets(made(case=case, solver="glpk", seconds=seconds, gap=gap)) is met


def test_a_row_has_its_date_revision_and_load() -> None:
    row = cells(page([made(load=2.5)]), "paper-3-2023")
    assert row[3:6] == ["5.0", "4.0", "0.100"]
    assert row[-3:] == ["2.5", "2026-11-22", "abc"]


def test_results_of_a_busy_machine_are_counted() -> None:
    assert "1 of the 2 results shown were taken above 1.3" in " ".join(page([made(load=1.1), made(load=2.0, solver="glpk")]).split())


def test_extrapolation_is_the_mean_times_the_number_of_candidates() -> None:
    assert extrapolated_s([1.0, 2.0, 6.0], 700) == pytest.approx(2100.0)


def test_the_textbook_row_extrapolates_and_divides_by_our_search() -> None:
    drawn = [textbook_line(0, 1.0), textbook_line(1, 2.0), textbook_line(2, 6.0)]
    row = cells(page([*drawn, made(seconds=5.0)]).split("## The textbook")[1], "paper-3-2023")
    assert row[3:8] == ["3", "60", "2.0", "6.0", "3 / 0 / 0 / 0"]
    assert row[8:11] == ["0.2", "0.6", "3 / 0 / 0 / 0"]
    assert row[11:15] == ["700", "35.0 min (CPU 17.5 min)", "5.0 s", "420 (CPU 262)"]


def test_a_program_that_its_limit_cut_short_makes_the_extrapolation_a_lower_bound() -> None:
    drawn = [textbook_line(0, 1.0, "infeasible"), textbook_line(1, 60.0, "feasible"), textbook_line(2, 60.0, "unknown")]
    row = cells(page([*drawn, made(seconds=30.0, gap=0.03)]).split("## The textbook")[1], "paper-3-2023")
    assert row[7] == "0 / 1 / 1 / 1"
    assert row[12].startswith("≥ ")
    assert row[13:15] == ["30.0 s, not proved (3.0 %)", "≥ 941 (CPU 3,529)"]


def test_a_sentence_sets_what_was_proved_against_what_was_not_found() -> None:
    drawn = [textbook_line(0, 60.0, "unknown"), textbook_line(1, 60.0, "feasible"), textbook_line(2, 1.0)]
    assert textbook_table.form_sentence(drawn) == (
        "3 candidates: textbook form 1 solved, 0 proved to have no plan, 1 with a plan but no proof, 1 with no plan found; "
        "counts form 3 solved, 0 proved to have no plan, 0 with a plan but no proof, 0 with no plan found."
    )
    given_up = textbook_table.form_sentence([*drawn, textbook_line(3, 0.5, "unknown")])
    assert given_up.endswith(
        "1 textbook programs ended before the limit with neither: the solver gave up, its simplex in numerical trouble."
    )


def test_rows_come_in_the_papers_order() -> None:
    text = page([made(case="paper-11-2023"), made(case="paper-4-2023", mode="budget 1"), made(case="paper-4-2023")])
    cases_ = [line.split("|")[1].strip() + line.split("|")[2] for line in text.splitlines() if line.startswith("| paper")]
    assert cases_ == ["paper-4-2023 theta ", "paper-11-2023 theta ", "paper-4-2023 budget 1 "]


def test_the_search_of_another_problem_or_solver_is_not_compared_with() -> None:
    row = cells(page([textbook_line(0, 1.0), made(problem="changed"), made(solver="glpk")]).split("## The textbook")[1], "paper-3-2023")
    assert row[13:15] == ["–", "–"]


def test_transfer_is_measured_against_the_best_plan_and_bound_of_the_same_problem() -> None:
    quick = made(kind="transfer", solver="none", status="heuristic", seconds=2.5, gap=None, objective_ms=1080.0, bound_ms=None)
    exact = [made(objective_ms=1010.0, bound_ms=1000.0), made(solver="glpk", objective_ms=1000.0, bound_ms=960.0), made(problem="other")]
    assert tables.distances(quick, [quick, *exact]) == (pytest.approx(0.08), pytest.approx(0.08))
    assert tables.distances(quick, [quick]) == (None, None)
    text = page([quick, *exact])
    assert "At most 2 s: 0 of 1. Not: paper-3 theta (2.5 s)." in text
    assert "0 of the 1 whose exact objective is known. Not: paper-3 theta (8.0 %)." in text


def test_sizes_stand_in_a_table_of_their_own_with_both_gaps() -> None:
    large = made(case="96x16-4-2023", seconds=299.0, gap=0.03, order_gap=0.004, time_limit_s=300.0, problem="large")
    planning, rest = page([made(), large]).split("## Growth")
    assert "96x16" not in planning
    growth = rest.split("##")[0]
    assert "96x16-4: target at most 2 % in 300 s; highs, theta: 3.00 % in 299 s, missed." in growth
    assert cells(growth, "96x16-4")[5:7] == ["3.000", "0.400"]


def test_the_figure_is_shown_where_it_is(tmp_path: Path) -> None:
    size = made(case="24x2-2-2023")
    write_page(tmp_path / "page.md", [size])
    assert "bench-plan-curve" not in (tmp_path / "page.md").read_text(encoding="utf-8")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bench-plan-curve.svg").write_text("<svg/>", encoding="utf-8")
    write_page(tmp_path / "page.md", [size])
    assert "](images/bench-plan-curve.svg)" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_the_committed_page_is_the_stored_results(tmp_path: Path) -> None:
    from llmpq.bench import record

    docs = Path(__file__).parents[3] / "docs"
    found = record.newest(record.read(docs / "bench-plan.jsonl"))
    figure = (docs / "images" / "bench-plan-curve.svg").is_file()
    assert (docs / "bench-plan.md").read_text(encoding="utf-8") == page(found, figure=figure)


def test_unknown_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    bench_plan.add_arguments(parser)
    for arguments, message in ((["--modes", "speed"], "unknown mode 'speed'"), (["--solvers", "cplex"], "unknown solver 'cplex'")):
        with pytest.raises(LlmpqError, match=message):
            bench_plan.run(parser.parse_args([*arguments, "--results", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "x.md")]))
    assert list(tmp_path.iterdir()) == []
