"""What the figures say, in words: who won, by how much, at which quality, and how far the prediction can be trusted."""

from typing import Any

from llmpq.report.format import gap_percent, joined, number, percent

Entry = dict[str, Any]

LEVEL = 0.02
"""Two runs whose tokens/s differ by less than this share are called level: each strategy is served once, and identical runs on a shared
machine differ by about so much."""


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """The answer to "which strategy, by how much, at which quality": key figures and sentences, all from ``summary``.

    The strategy in focus is ``llmpq`` (the first one where it was not run); it is compared with the fastest of the others.
    """
    entries = {entry["strategy"]: entry for entry in summary["strategies"]}
    side = "measured" if summary["served"] else "predicted"
    focus = entries.get("llmpq", summary["strategies"][0])
    others = [entry for entry in entries.values() if entry is not focus]
    fastest_other = max(others, key=lambda entry: entry["tokens_per_s"][side], default=None)
    points = [_speed(focus, fastest_other, side), *_cautions(summary)]
    points += [_quality(focus, others, side)] if summary["served"] else []
    points += [_goal(summary, entries, side)] if others else []
    points += [_prediction(focus)] if summary["served"] else []
    points += [_certificate(focus)]
    return {
        "focus": focus["strategy"],
        "side": side,
        "fastest": max(entries.values(), key=lambda entry: entry["tokens_per_s"][side])["strategy"],
        "fastest_other": fastest_other["strategy"] if fastest_other else None,
        "speedup": _ratio(focus, fastest_other, side) if fastest_other else None,
        "best_by_goal": _ranked(entries, side)[0]["strategy"],
        "headline": points[0],
        "points": points[1:],
    }


def _ratio(entry: Entry, other: Entry, side: str) -> float:
    return float(entry["tokens_per_s"][side] / other["tokens_per_s"][side])


def _speed(focus: Entry, other: Entry | None, side: str) -> str:
    name, rate = focus["strategy"], number(focus["tokens_per_s"][side])
    served = "served" if side == "measured" else "is predicted to serve"
    if other is None:
        return f"{name} {served} {rate} tokens/s; no other strategy was run to compare with."
    rival, rival_rate, ratio = other["strategy"], number(other["tokens_per_s"][side]), _ratio(focus, other, side)
    if ratio > 1 + LEVEL:
        return f"{name} {served} {rate} tokens/s, {number(ratio)} times the next fastest plan ({rival}, {rival_rate})."
    if ratio < 1 - LEVEL:
        return f"{rival}, not {name}, was the fastest: {rival_rate} tokens/s against {rate} ({name} reached {number(ratio)} of it)."
    return f"{name} and {rival} came out level: {rate} and {rival_rate} tokens/s, closer than one run each can tell apart."


def _cautions(summary: dict[str, Any]) -> list[str]:
    cautions = []
    if not summary["speed_claimed"]:
        cautions.append(
            "No speed is claimed here: more stages were busy than this machine has cores. The run shows that the plans work and fit, "
            "not how fast they are."
        )
    resumed = [f"{entry['strategy']} ({entry['resumed_requests']})" for entry in summary["strategies"] if entry["resumed_requests"]]
    if resumed:
        cautions.append(f"Some requests were taken over from an interrupted attempt: {joined(resumed)}. Times are those of the others.")
    return cautions


def _perplexities(entry: Entry) -> str:
    return joined([f"{number(text['perplexity'])} ± {number(text['standard_error'], 2)} on {text['text']}" for text in entry["quality"]])


def _quality(focus: Entry, others: list[Entry], side: str) -> str:
    name = focus["strategy"]
    beaten, beating, rest = [], [], []
    for other in others:
        faster = _ratio(focus, other, side)
        better = [a["perplexity"] - b["perplexity"] for a, b in zip(focus["quality"], other["quality"], strict=True)]
        if faster >= 1 and all(difference <= 0 for difference in better):
            beaten.append(other["strategy"])
        elif faster <= 1 and all(difference >= 0 for difference in better):
            beating.append(other["strategy"])
        else:
            word = "slower but more faithful" if faster > 1 else "faster but less faithful"
            rest.append(f"{other['strategy']} is {word} ({_perplexities(other)})")
    text = f"Its perplexity, lower being better, is {_perplexities(focus)}."
    if beaten:
        text += f" No slower and no worse on any text than {joined(beaten)}."
    if beating:
        text += f" {joined(beating)} did at least as well in both speed and perplexity: here the search of {name} gained nothing."
    return text + (f" {_capital(joined(rest))}." if rest else "")


def _capital(text: str) -> str:
    return text if text.split(" ")[0].islower() else text[0].upper() + text[1:]


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
        limit = "no better plan exists" if gap is not None and gap <= 1e-9 else f"no plan can be more than {gap_percent(gap)} better"
        return f"Planning took {seconds} s, and within the cost model {limit} than the one {name} chose: that is proved."
    if gap is not None:
        return f"Planning took {seconds} s and stopped before a proof: by the cost model a plan up to {gap_percent(gap)} better may exist."
    return f"Planning took {seconds} s; {name} gives no proof of how good its plan is."
