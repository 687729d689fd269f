"""The plans of all strategies under each other, as coloured strips of plain HTML: many fit on a page, and they print."""

from typing import Any

from llmpq.report.binding import limits
from llmpq.report.format import by_bits, layer_range, number, option_counts
from llmpq.report.palette import ink_on, option_colour
from llmpq.suites.members import Document, Member

PHONE, CHARACTER, MARGIN = 300, 7, 6
"""Pixels: the width of a strip on a phone, of a character of a label, and around it."""


def plan_rows(members: list[Member]) -> list[dict[str, Any]]:
    """plans.csv: one row per run of layers of one option on one stage."""
    rows = []
    for member in members:
        for strategy, plan in member.plans.items():
            rows += [
                {"experiment": member.name, "strategy": strategy, "source": member.summary["source"], **piece} for piece in pieces(plan)
            ]
    return rows


def pieces(plan: Document) -> list[dict[str, Any]]:
    """The runs of equal options of a plan: stage, device, option, first layer, number of layers."""
    found: list[dict[str, Any]] = []
    for index, stage in enumerate(plan["stages"]):
        for offset, option in enumerate(stage["options"]):
            last = found[-1] if found else None
            if last and (last["stage"], last["option"]) == (index, option):
                last["layers"] += 1
            else:
                layer = stage["first_layer"] + offset
                found.append({"stage": index, "device": stage["device"], "option": option, "first_layer": layer, "layers": 1})
    return found


def strips(member: Member) -> dict[str, Any]:
    """What the template draws of one experiment: a strip per strategy, the options' colours, and what binds llmpq's plan."""
    options = by_bits([option for plan in member.plans.values() for stage in plan["stages"] for option in stage["options"]])
    return {
        "name": member.name,
        "source": member.summary["source"],
        "headline": member.summary["verdict"]["headline"],
        "href": "",
        "legend": [{"option": option, "colour": option_colour(option)} for option in options],
        "strips": [_strip(member, strategy, plan) for strategy, plan in member.plans.items()],
        "without": member.summary.get("without_plan", []),
        "limits": limits(member.plans[member.focus["strategy"]]),
    }


def _strip(member: Member, strategy: str, plan: Document) -> dict[str, Any]:
    layers = member.summary["layers"]
    over = ", over the quality budget" if member.entries[strategy]["quality_budget_met"] is False else ""
    speed = member.tokens_per_s(strategy)
    return {
        "strategy": strategy,
        "detail": ("no speed claimed" if speed is None else f"{number(speed)} tokens/s") + over,
        "stages": [
            _stage(stage, layers, [piece for piece in pieces(plan) if piece["stage"] == index])
            for index, stage in enumerate(plan["stages"])
        ],
    }


def _stage(stage: Document, layers: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    count = len(stage["options"])
    return {
        "device": _if_it_fits(stage["device"], count / layers),
        "layers": count,
        "title": f"{stage['device']}: {layer_range(stage['first_layer'], count)} ({option_counts(stage['options'])})",
        "pieces": [
            {
                "layers": piece["layers"],
                "label": _if_it_fits(piece["option"], piece["layers"] / layers),
                "colour": option_colour(piece["option"]),
                "ink": ink_on(option_colour(piece["option"])),
            }
            for piece in found
        ],
    }


def _if_it_fits(text: str, share: float) -> str:
    """``text``, where ``share`` of a strip has room for it on a phone; else nothing."""
    return text if CHARACTER * len(text) + MARGIN <= share * PHONE else ""
