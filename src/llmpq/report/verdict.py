"""What the figures say, in words: who won, by how much, at which quality, and how far the prediction can be trusted."""

from typing import Any

from llmpq.report.format import gap_percent, joined, number, percent

Entry = dict[str, Any]

LEVEL = 0.02
"""Two runs whose tokens/s differ by less than this share are called level: each strategy is served once, and identical runs on a shared
machine differ by about so much."""

_SERVED = {"measured": "served", "simulated": "serves, in simulation,", "predicted": "is predicted to serve"}


def focus_strategy(strategies: list[str]) -> str:
    """The strategy that a report is about: ``llmpq``, or the first one where it was not run."""
    return "llmpq" if "llmpq" in strategies else strategies[0]


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """The answer to "which strategy, by how much, at which quality": key figures and sentences, all from ``summary``.

    The strategy in focus is ``llmpq`` (the first one where it was not run); it is compared with the fastest of the others.
    """
    entries = {entry["strategy"]: entry for entry in summary["strategies"]}
    side = "measured" if summary["served"] else "predicted"
    focus = entries[focus_strategy(list(entries))]
    others = [entry for entry in entries.values() if entry is not focus]
    fastest_other = max(others, key=lambda entry: entry["tokens_per_s"][side], default=None)
    claimed = summary["speed_claimed"]
    points = [
        *_offload(summary),
        _speed(focus, fastest_other, side, _SERVED[how(summary)]) if claimed else _no_speed(len(entries)),
        *_resumed(summary),
    ]
    points += [_quality(focus, others, side, claimed)] if summary["served"] else []
    points += [_goal(summary, entries, side)] if others and claimed else []
    points += [_prediction(focus)] if summary["served"] and claimed else []
    points += _engine(summary)
    points += [_certificate(focus), *_without_plan(summary), *_degraded(summary)]
    return {
        "focus": focus["strategy"],
        "side": side,
        "fastest": max(entries.values(), key=lambda entry: entry["tokens_per_s"][side])["strategy"],
        "fastest_other": fastest_other["strategy"] if fastest_other else None,
        "speedup": _ratio(focus, fastest_other, side) if fastest_other and claimed else None,
        "best_by_goal": _ranked(entries, side)[0]["strategy"],
        "headline": points[0],
        "points": points[1:],
    }


def _engine(summary: dict[str, Any]) -> list[str]:
    """What predictions and quality are worth where another program served."""
    if "engine" not in summary:
        return []
    return [f"Served by {summary['engine']}; predictions are of a profile through it, quality is measured with llmpq's own kernels."]


def _ratio(entry: Entry, other: Entry, side: str) -> float:
    return float(entry["tokens_per_s"][side] / other["tokens_per_s"][side])


def how(summary: dict[str, Any]) -> str:
    """How the speeds of ``summary`` were found: measured, simulated or predicted."""
    return "measured" if summary["served"] else "simulated" if summary["source"] == "simulated" else "predicted"


def _speed(focus: Entry, other: Entry | None, side: str, served: str) -> str:
    name, rate = focus["strategy"], number(focus["tokens_per_s"][side])
    if other is None:
        return f"{name} {served} {rate} tokens/s; no other strategy was run to compare with."
    rival, rival_rate, ratio = other["strategy"], number(other["tokens_per_s"][side]), _ratio(focus, other, side)
    if ratio > 1 + LEVEL:
        return f"{name} {served} {rate} tokens/s, {number(ratio)} times the next fastest plan ({rival}, {rival_rate})."
    if ratio < 1 - LEVEL:
        return f"{rival}, not {name}, was the fastest: {rival_rate} tokens/s against {rate} ({name} reached {number(ratio)} of it)."
    why = "closer than one run each can tell apart" if served == _SERVED["measured"] else f"less than {percent(100 * LEVEL)} apart"
    return f"{name} and {rival} came out level: {rate} and {rival_rate} tokens/s, {why}."


def _no_speed(count: int) -> str:
    plans = "The plan was" if count == 1 else f"All {count} plans were"
    return f"{plans} served within the memory budgets; speed is not claimed, as more stages were busy than this machine has cores."


def _resumed(summary: dict[str, Any]) -> list[str]:
    resumed = [f"{entry['strategy']} ({entry['resumed_requests']})" for entry in summary["strategies"] if entry["resumed_requests"]]
    return (
        [f"Some requests were taken over from an interrupted attempt: {joined(resumed)}. Times are those of the others."] if resumed else []
    )


def _offload(summary: dict[str, Any]) -> list[str]:
    """First of all, where every plan that was run is beaten by one that this runtime cannot run."""
    found = summary.get("offload_wins")
    if found is None:
        return []
    return [
        f"By the goal that was set, streaming layers from host memory at option {found['option']} would be better than every plan here "
        f"({number(found['total_s'])} s predicted for the batch); this runtime does not stream weights."
    ]


def _without_plan(summary: dict[str, Any]) -> list[str]:
    """What was asked for and cannot be run: it does not fit, or it is priced for comparison alone."""
    found = summary.get("without_plan", [])
    words = {"infeasible": "does not fit", "priced": "was not run"}
    return [f"{each['strategy']} {words[each['status']]}: {each['message'].removeprefix(each['strategy'] + ': ')}." for each in found]


def _degraded(summary: dict[str, Any]) -> list[str]:
    """Devices whose fitted times miss held-out shapes by more than a fit should: predictions for them are to be taken with care."""
    fits = [f"{fit['device']} ({number(fit['heldout_percent'])} %)" for fit in summary["degraded_fits"]]
    why = "take predictions with care, and profile again on a quieter machine"
    return [f"The fitted times miss held-out shapes by more than 10 % on {joined(fits)}: {why}."] if fits else []


def _perplexities(entry: Entry) -> str:
    return joined([f"{number(text['perplexity'])} ± {number(text['standard_error'], 2)} on {text['text']}" for text in entry["quality"]])


def _from_16_bit(entry: Entry) -> str:
    found = entry["from_16_bit"]
    if found is None:
        return ""
    return (
        f" Its predictions are {number(found['kl'], 2)} nats a token (KL) from those at 16 bit, with the same first choice at "
        f"{percent(100 * found['top1'])} of the tokens."
    )


def _answers(entry: Entry) -> str:
    found = [
        f"{percent(100 * task['accuracy'])} of {task['questions']} questions of {task['task']}"
        + (f" (guessing {percent(100 * task['chance'])})" if task["chance"] is not None else "")
        for task in entry["tasks"]
    ]
    return f" It answers {joined(found)} right." if found else ""


def _quality(focus: Entry, others: list[Entry], side: str, speed_claimed: bool) -> str:
    """Perplexities of the focus, then every other strategy by what sets it apart in speed and quality."""
    name, text = focus["strategy"], f"Its perplexity, lower being better, is {_perplexities(focus)}.{_from_16_bit(focus)}{_answers(focus)}"
    groups: dict[str, list[str]] = {}
    for other in others:
        speed = 0 if not speed_claimed or abs(_ratio(focus, other, side) - 1) <= LEVEL else 1 if _ratio(focus, other, side) > 1 else -1
        groups.setdefault(_relation(speed, _fidelity(focus, other)), []).append(other["strategy"])
    sentences = {
        "beaten": f"{name} is ahead of {{}} in speed or perplexity and behind in neither.",
        "beating": f"{{}} came out ahead in speed or perplexity and behind in neither: here the search of {name} gained nothing.",
        "level": "{} cannot be told from it in either.",
        "slower": "Slower than it, but with lower perplexity: {}.",
        "faster": "Faster than it, but with higher perplexity: {}.",
        "mixed": "Better on one text and worse on another: {}.",
    }
    return " ".join([text, *(sentence.format(joined(groups[key])) for key, sentence in sentences.items() if key in groups)])


def _fidelity(focus: Entry, other: Entry) -> list[int]:
    """Per text 1 where ``other`` is worse than the focus, −1 where it is better, 0 where the windows cannot tell."""
    found = []
    for a, b in zip(focus["quality"], other["quality"], strict=True):
        paired = b["against_focus"]
        difference = b["perplexity"] - a["perplexity"] if paired is None else {"worse": 1, "same": 0, "better": -1}[paired["verdict"]]
        found.append((difference > 0) - (difference < 0))
    return found


def _relation(speed: int, fidelity: list[int]) -> str:
    """How the focus stands to another strategy; ``speed`` and ``fidelity`` are positive where the focus is ahead."""
    ahead, behind = max(speed, *fidelity) > 0, min(speed, *fidelity) < 0
    if not (ahead and behind):
        return "beaten" if ahead else "beating" if behind else "level"
    if speed > 0 and max(fidelity) <= 0:
        return "slower"
    if speed < 0 and min(fidelity) >= 0:
        return "faster"
    return "mixed"


def _ranked(entries: dict[str, Entry], side: str) -> list[Entry]:
    """Strategies by the goal the planner was given: those within the quality budget first, then by the goal's milliseconds."""
    return sorted(entries.values(), key=lambda entry: (entry["quality_budget_met"] is False, entry["goal_ms"][side]))


def _goal(summary: dict[str, Any], entries: dict[str, Entry], side: str) -> str:
    objective, reference = summary["objective"], summary["reference_option"]
    ranked = _ranked(entries, side)
    first = ranked[0]["strategy"]
    if "quality_budget" in objective:
        budget = objective["quality_budget"]
        outside = [entry["strategy"] for entry in ranked if entry["quality_budget_met"] is False]
        limit = "no more damage than" if budget == 1 else f"at most {number(budget)} times the damage of"
        text = (
            f"The goal was the shortest batch with {limit} {reference} bit everywhere: "
            f"by that goal {first} comes first ({number(ranked[0]['goal_ms'][side] / 1000)} s)."
        )
        return text + (f" Outside the budget: {joined(outside)}." if outside else "")
    scores = joined([f"{entry['strategy']} {number(entry['goal_ms'][side] / 1000)} s" for entry in ranked])
    return (
        f"The goal was batch time plus {number(objective['theta_ms'] / 1000)} s for every time the damage of {reference} bit everywhere: "
        f"by that goal {first} comes first ({scores})."
    )


def _prediction(focus: Entry) -> str:
    error = focus["total_s"]["error_percent"]
    way = "longer" if error > 0 else "shorter"
    total = focus["total_s"]
    return (
        f"The plan predicted {number(total['predicted'])} s for the batch, the run took {number(total['measured'])} s: "
        f"the prediction was {percent(abs(error))} {way} than the truth."
    )


def _certificate(focus: Entry) -> str:
    planning = focus["planning"]
    name, gap, seconds = focus["strategy"], planning["gap"], number(planning["seconds"])
    if planning["status"] == "optimal":
        limit = "no better plan exists" if gap is not None and gap < 1e-5 else f"no plan can be more than {gap_percent(gap)} better"
        return f"Planning took {seconds} s, and within the cost model {limit} than the one {name} chose: that is proved."
    if gap is not None:
        return f"Planning took {seconds} s and stopped before a proof: by the cost model a plan up to {gap_percent(gap)} better may exist."
    return f"Planning took {seconds} s; {name} gives no proof of how good its plan is."
