"""The words at the top of the page: they say who won only when it did, and say so when it did not."""

from pathlib import Path
from typing import Any

import pytest
from report_factory import make_experiment

from llmpq.report.binding import decision, limits
from llmpq.report.experiment import load_experiment
from llmpq.report.verdict import verdict


def _entry(strategy: str, rate: float, perplexity: float | None = 20.0, **changes: Any) -> dict[str, Any]:
    both = {"predicted": 10.0, "measured": 10.0, "error_percent": 0.0}
    quality = (
        []
        if perplexity is None
        else [{"text": "prose", "perplexity": perplexity, "standard_error": 0.5, "tokens": 100, "against_focus": None}]
    )
    entry = {
        "strategy": strategy, "tokens_per_s": {"predicted": rate, "measured": rate, "error_percent": 0.0}, "total_s": both,
        "quality": quality, "from_16_bit": None, "tasks": [], "omega_sum": 0.5,
        "goal_ms": {"predicted": 1e6 / rate, "measured": 1e6 / rate, "error_percent": 0.0},
        "quality_budget_met": True, "resumed_requests": 0, "planning": {"seconds": 2.0, "gap": 0.0, "status": "optimal", "solver": "glpk"},
    }  # fmt: skip
    return {**entry, **changes}


def _verdict(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    summary = {
        "served": True,
        "speed_claimed": True,
        "objective": {"quality_budget": 1.0},
        "reference_option": "4",
        "degraded_fits": [],
        "strategies": list(entries),
    }
    return verdict({**summary, **changes})


def test_a_win_states_the_factor_over_the_fastest_other() -> None:
    found = _verdict(_entry("llmpq", 60), _entry("uniform", 30), _entry("adabits", 40))
    assert found["headline"] == "llmpq served 60.0 tokens/s, 1.50 times the next fastest plan (adabits, 40.0)."
    assert (found["fastest"], found["fastest_other"], found["speedup"]) == ("llmpq", "adabits", 1.5)


def test_another_engine_is_named_with_what_predictions_are_worth() -> None:
    entries = (_entry("llmpq", 60), _entry("uniform", 30))
    told = "Served by vllm 0.32.0; predictions are of a profile through it, quality is measured with llmpq's own kernels."
    assert told in _verdict(*entries, engine="vllm 0.32.0")["points"]
    assert not [point for point in _verdict(*entries)["points"] if point.startswith("Served by")]


def test_a_loss_leads_with_the_winner() -> None:
    found = _verdict(_entry("llmpq", 30), _entry("uniform", 60))
    assert found["headline"] == "uniform, not llmpq, was the fastest: 60.0 tokens/s against 30.0 (llmpq reached 0.500 of it)."
    assert (found["fastest"], found["speedup"], found["best_by_goal"]) == ("uniform", 0.5, "uniform")


@pytest.mark.parametrize("rate", [49.1, 50.9])
def test_less_than_two_percent_is_not_called_a_win(rate: float) -> None:
    assert _verdict(_entry("llmpq", rate), _entry("uniform", 50))["headline"].startswith("llmpq and uniform came out level")


def test_quality_tells_who_was_beaten_by_whom() -> None:
    others = [
        _entry("adabits", 40, 21),
        _entry("uniform", 60, 19),
        _entry("pipeedge", 70, 25),
        _entry("even", 50.5, 20),
        _entry("slow", 40, 19),
    ]
    assert _verdict(_entry("llmpq", 50, 20), *others)["points"][0] == (
        "Its perplexity, lower being better, is 20.0 ± 0.50 on prose. "
        "llmpq is ahead of adabits in speed or perplexity and behind in neither. "
        "uniform came out ahead in speed or perplexity and behind in neither: here the search of llmpq gained nothing. "
        "even cannot be told from it in either. Slower than it, but with lower perplexity: slow. "
        "Faster than it, but with higher perplexity: pipeedge."
    )


def test_a_difference_that_the_windows_cannot_show_is_none() -> None:
    other = _entry("uniform", 50, 20.4)
    other["quality"][0]["against_focus"] = {"mean": 0.02, "low": -0.01, "high": 0.05, "windows": 8, "verdict": "same"}
    assert "uniform cannot be told from it in either." in _verdict(_entry("llmpq", 50, 20), other)["points"][0]


def test_better_on_one_text_and_worse_on_another_is_said() -> None:
    focus, other = _entry("llmpq", 50, 20), _entry("uniform", 50, 19)
    for entry, perplexity in ((focus, 10.0), (other, 11.0)):
        entry["quality"].append({**entry["quality"][0], "text": "code", "perplexity": perplexity})
    assert "Better on one text and worse on another: uniform." in _verdict(focus, other)["points"][0]


def test_the_quality_budget_decides_the_goal() -> None:
    found = _verdict(_entry("llmpq", 50), _entry("uniform", 70, quality_budget_met=False))
    assert found["best_by_goal"] == "llmpq"
    assert any(
        "no more damage than 4 bit everywhere: by that goal llmpq comes first" in point and "Outside the budget: uniform." in point
        for point in found["points"]
    )


def test_theta_mode_ranks_by_time_and_damage() -> None:
    slow = {"predicted": 9000.0, "measured": 9000.0, "error_percent": 0.0}
    found = _verdict(_entry("llmpq", 50), _entry("uniform", 40, goal_ms=slow), objective={"theta_ms": 2000.0})
    assert found["best_by_goal"] == "uniform"
    assert any(
        "2.00 s for every time the damage of 4 bit everywhere" in p and "(uniform 9.00 s and llmpq 20.0 s)" in p for p in found["points"]
    )


def test_no_speed_is_claimed_beyond_the_cores() -> None:
    found = _verdict(_entry("llmpq", 50), _entry("uniform", 20), speed_claimed=False)
    assert found["headline"] == (
        "All 2 plans were served within the memory budgets; speed is not claimed, as more stages were busy than this machine has cores."
    )
    assert found["speedup"] is None
    assert not any("tokens/s" in point or "comes first" in point or "predicted" in point for point in found["points"])


def test_resumed_runs_are_said() -> None:
    assert "llmpq (7)" in _verdict(_entry("llmpq", 50, resumed_requests=7))["points"][0]


@pytest.mark.parametrize(
    ("planning", "words"),
    [
        ({"status": "optimal", "gap": 0.0}, "no better plan exists than the one llmpq chose: that is proved"),
        ({"status": "optimal", "gap": 0.001}, "no plan can be more than 0.10 % better"),
        ({"status": "feasible", "gap": 0.05}, "a plan up to 5.0 % better may exist"),
        ({"status": "heuristic", "gap": None}, "gives no proof"),
    ],
)
def test_the_certificate_is_not_oversold(planning: dict[str, Any], words: str) -> None:
    found = _verdict(_entry("llmpq", 50, planning={"seconds": 2.0, "solver": "glpk", **planning}))
    assert words in found["points"][-1]


def test_the_first_strategy_is_in_focus_where_llmpq_was_not_run() -> None:
    assert _verdict(_entry("adabits", 50), _entry("uniform", 40))["focus"] == "adabits"


def test_a_plan_in_words(tmp_path: Path) -> None:
    paths = make_experiment(tmp_path, strategies=("llmpq",))
    inputs = {"problem": paths.problem, "indicator": None, "costs": [], "strategies": ["llmpq"]}
    experiment = load_experiment(paths.directory, **inputs)
    text = decision(experiment.runs[0], experiment)
    assert text.startswith("llmpq gives fast0 layers 0–17 with the embedding at 16 and slow0 layers 18–29 with the head at 16.")
    assert "It keeps 6 layers at 16, 10 at w8a8-outlier, 8 at w8a8 and 6 at 4." in text
    assert "Prompts are read 8 at a time, new tokens are made for 16 requests at a time." in text


def test_every_kind_of_limit_has_a_sentence() -> None:
    kinds = ["memory", "prefill", "decode", "prefill_link", "decode_link", "round_trip", "quality"]
    binding = [{"stage": None if kind in ("round_trip", "quality") else 0, "what": kind, "slack": 0.0} for kind in kinds]
    texts = limits({"stages": [{"device": "a"}, {"device": "b"}], "binding": binding})
    assert len(set(texts)) == len(kinds)
    assert texts[3] == "Prefill, the link from a to b: nothing else takes longer there."


def test_distance_from_16_bit_and_answers_are_said_of_the_focus() -> None:
    tasks = [
        {"task": "continuation", "accuracy": 0.8, "low": 0.7, "high": 0.9, "questions": 100, "chance": 0.25},
        {"task": "lambada_openai", "accuracy": 0.31, "low": 0.3, "high": 0.32, "questions": 5153, "chance": None},
    ]
    found = _verdict(_entry("llmpq", 100.0, from_16_bit={"kl": 0.0213, "top1": 0.953}, tasks=tasks), _entry("uniform", 50.0))
    text = " ".join(found["points"])
    assert "Its predictions are 0.021 nats a token (KL) from those at 16 bit, with the same first choice at 95 % of the tokens." in text
    answers = "80 % of 100 questions of continuation (guessing 25 %) and 31 % of 5153 questions of lambada_openai right"
    assert f"It answers {answers}." in text
