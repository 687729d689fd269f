"""The comparison with the published figures, on numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from llmpq.suites.members import AS_PUBLISHED, TUNED, Facts, Member
from llmpq.suites.overview import overview, overview_rows
from llmpq.suites.published import findings, published_rows, speedup_table, tokens_table


def member(cluster: str, kernels: str = "2023", over: tuple[str, ...] = (), status: str = "optimal", **speeds: float) -> Member:
    """A simulated row of the paper with these tokens/s; strategies of ``over`` are over the quality budget."""
    named = {name.replace("_", "-"): speed for name, speed in speeds.items()}
    entries: list[dict[str, Any]] = [
        {
            "strategy": name,
            "tokens_per_s": {"predicted": speed, "measured": None},
            "quality_budget_met": name not in over,
            "omega_sum": 0.5,
            "planning": {"seconds": 1.0, "gap": 0.0, "status": status},
        }
        for name, speed in named.items()
    ]
    summary = {
        "source": "simulated", "served": False, "speed_claimed": True, "model": "opt", "layers": 4, "strategies": entries,
        "workload": {"requests": 32, "slots": 32, "prompt_tokens": 512, "new_tokens": 100},
        "verdict": {"focus": "llmpq", "side": "predicted"}, "objective": {"quality_budget": 0.5},
    }  # fmt: skip
    return Member(f"{cluster}-{kernels}", Path("."), Facts("paper", cluster, "1 × t4", "paper", kernels), summary, {})


MEMBERS = [
    member("paper-3", llmpq=60.0, adabits=40.0, het=50.0, uniform=90.0, over=("uniform",), adabits_published=20.0, even_published=5.0),
    member("paper-5", llmpq=30.0, adabits=30.0, adabits_published=10.0, pipeedge_published=6.0, status="feasible"),
    member("paper-5", "today", llmpq=100.0, het=100.0),
]


def test_the_best_baseline_is_the_fastest_within_the_quality_budget() -> None:
    assert MEMBERS[0].best(TUNED) is not None
    assert MEMBERS[0].best(TUNED).strategy == "het"  # type: ignore[union-attr]
    assert MEMBERS[0].speedup(TUNED) == pytest.approx(1.2)
    assert MEMBERS[0].speedup(AS_PUBLISHED) == pytest.approx(3.0)
    assert MEMBERS[2].speedup(AS_PUBLISHED) is None


def rows(members: list[Member], what: str) -> dict[str, tuple[Any, Any, Any]]:
    found = [row for row in published_rows(members) if row["what"] == what]
    return {row["cluster"]: (row["published"], row["simulated_2023"], row["simulated_today"]) for row in found}


def test_speedups_by_cluster_with_mean_and_maximum() -> None:
    assert rows(MEMBERS, "speed-up over the best baseline, tuned") == {
        "paper-3": (None, pytest.approx(1.2), None),
        "paper-5": (None, pytest.approx(1.0), pytest.approx(1.0)),
        "mean": (2.26, pytest.approx(1.1), pytest.approx(1.0)),
        "maximum": (2.88, pytest.approx(1.2), pytest.approx(1.0)),
    }
    assert rows(MEMBERS, "speed-up over the best baseline, as published")["mean"] == (2.26, pytest.approx(3.0), None)
    assert rows(MEMBERS, "speed-up over the best baseline, one width, as published")["mean"] == (2.26, pytest.approx((12 + 5) / 2), None)


def test_printed_tokens_stand_beside_ours() -> None:
    assert rows(MEMBERS, "LLM-PQ, tokens/s") == {"paper-3": (39.70, 60.0, None), "paper-5": (9.97, 30.0, 100.0)}
    assert rows(MEMBERS, "AdaBits, tokens/s") == {"paper-3": (33.93, 20.0, None), "paper-5": (7.35, 10.0, None)}
    cells = {(row[0].text, row[1].text): (row[3].text, row[3].detail) for row in tokens_table(MEMBERS).rows}
    assert cells["paper-3", "LLM-PQ"] == ("60.0", "1.51 × published")
    assert cells["paper-9", "FlexGen, 16 bit"] == ("–", "not simulated")


def test_the_table_names_each_baseline() -> None:
    table = speedup_table(MEMBERS)
    first = table.rows[0]
    assert [(cell.text, cell.detail) for cell in first[:3]] == [("paper-3", ""), ("1.20×", "het"), ("3.00×", "adabits-published")]
    assert [row[0].text for row in table.rows] == ["paper-3", "paper-5", "mean", "maximum"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_findings_say_where_nothing_is_gained_and_what_is_not_proved() -> None:
    told = findings(MEMBERS)
    assert "1.10× on average and 1.20× at most over the best tuned (2 clusters)" in told[0]
    assert "on 1 of 2 clusters" in told[0]
    assert told[-1].endswith(": paper-5-2023.")


def test_other_batches_and_other_suites_are_not_compared() -> None:
    other = member("paper-1", llmpq=1.0)
    lat = Member("lat", other.directory, Facts("paper", "paper-1", "", "paper-lat", "2023"), other.summary, {})
    local = Member("local", other.directory, Facts("local", "duo", "", "paper", "2023"), other.summary, {})
    assert published_rows([lat, local]) == []


def test_the_overview_has_a_row_per_experiment() -> None:
    found = overview_rows(MEMBERS)
    assert [row["experiment"] for row in found] == ["paper-3-2023", "paper-5-2023", "paper-5-today"]
    assert (found[0]["best_tuned"], found[0]["speedup_over_tuned"], found[0]["source"]) == ("het", pytest.approx(1.2), "simulated")
    assert found[2]["best_as_published"] is None
    assert (found[0]["quality_budget"], found[0]["theta_ms"]) == (0.5, None)
    table = overview(MEMBERS)
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_goal_is_a_limit_or_a_price() -> None:
    known = MEMBERS[0]
    priced = Member("a", known.directory, known.facts, {**known.summary, "objective": {"theta_ms": 2500.0}}, {})
    goals = [row[3] for row in overview([known, priced]).rows]
    assert [(cell.text, cell.detail) for cell in goals] == [("≤ 0.500", "damage"), ("2.50 s", "for a damage of 1")]
    assert float(goals[0].key) < float(goals[1].key)
    assert priced.speedup(TUNED) is None


def test_without_a_claim_to_speed_there_is_no_speedup() -> None:
    known = MEMBERS[0]
    silent = Member("a", known.directory, known.facts, {**known.summary, "speed_claimed": False}, {})
    assert silent.speedup(TUNED) is None
    assert overview_rows([silent])[0]["tokens_per_s"] is None
