"""The overview: one row per experiment, as a CSV and as the table that the page sorts."""

from typing import Any

from llmpq.report.format import gap_percent, number
from llmpq.report.tables import Cell, Column, Table
from llmpq.suites.members import AS_PUBLISHED, TUNED, Best, Member


def overview_rows(members: list[Member]) -> list[dict[str, Any]]:
    """overview.csv: tokens/s, speed-ups as ratios, damage in units of uniform 4 bit; empty where there is no such figure."""
    return [_row(member) for member in members]


def _row(member: Member) -> dict[str, Any]:
    workload, focus = member.summary["workload"], member.focus
    row: dict[str, Any] = {
        "experiment": member.name,
        **vars(member.facts),
        "model": member.summary["model"],
        "source": member.summary["source"],
    }
    row |= {key: workload[key] for key in ("requests", "prompt_tokens", "new_tokens")}
    row |= {key: member.summary["objective"].get(key) for key in ("quality_budget", "theta_ms")}
    row |= {"strategy": focus["strategy"], "tokens_per_s": member.tokens_per_s(focus["strategy"])}
    for name, strategies in (("tuned", TUNED), ("as_published", AS_PUBLISHED)):
        best = member.best(strategies)
        row |= {f"best_{name}": best.strategy if best else None, f"best_{name}_tokens_per_s": best.tokens_per_s if best else None}
        row[f"speedup_over_{name}"] = member.speedup(strategies)
    row |= {"omega_sum": focus["omega_sum"], "planning_s": focus["planning"]["seconds"]}
    return row | {"gap": focus["planning"]["gap"], "status": focus["planning"]["status"]}


def overview(members: list[Member]) -> Table:
    """The same for the page; small print names the baselines."""
    columns = [
        Column("experiment", "suite", numeric=False),
        Column("model", "devices", numeric=False),
        *[Column(title) for title in ("batch", "goal", "tokens/s")],
        Column("speed-up", "over the best tuned baseline"),
        Column("speed-up", "over the best as published"),
        Column("damage", "Σ omega"),
        Column("planning", "s"),
        Column("gap"),
        Column("figures", numeric=False),
    ]
    caption = (
        "Every experiment with llmpq's plan. A speed-up is llmpq's tokens/s over those of the fastest baseline that keeps the quality "
        "asked for, which is named below it; a dash: no such baseline has a plan, no speed is claimed, or damage has a price and no limit."
    )
    return Table(caption, columns, [_cells(member) for member in members])


def _cells(member: Member) -> list[Cell]:
    workload, focus = member.summary["workload"], member.focus
    speed, planning = member.tokens_per_s(focus["strategy"]), focus["planning"]
    batch = f"{workload['requests']} × {workload['prompt_tokens']}+{workload['new_tokens']}"
    gap = planning["gap"]
    return [
        Cell(member.name, member.facts.suite, member.name),
        Cell(member.summary["model"], member.facts.devices, member.summary["model"]),
        Cell(batch, key=workload["requests"] * (workload["prompt_tokens"] + workload["new_tokens"])),
        _goal(member),
        Cell(number(speed), key=-1 if speed is None else speed),
        _speedup(member, TUNED),
        _speedup(member, AS_PUBLISHED),
        Cell(number(focus["omega_sum"]), "over budget" if focus["quality_budget_met"] is False else "", focus["omega_sum"]),
        Cell(number(planning["seconds"]), key=planning["seconds"]),
        Cell(gap_percent(gap), planning["status"], gap if gap is not None else float("inf")),
        Cell(member.summary["source"], key=member.summary["source"]),
    ]


def _goal(member: Member) -> Cell:
    """A limit on the damage, or the seconds that a damage of 1 is priced at."""
    objective = member.summary["objective"]
    if "quality_budget" in objective:
        return Cell(f"≤ {number(objective['quality_budget'])}", "damage", objective["quality_budget"])
    return Cell(f"{number(objective['theta_ms'] / 1000)} s", "for a damage of 1", 1e6 + objective["theta_ms"])


def _speedup(member: Member, strategies: tuple[str, ...]) -> Cell:
    ratio, best = member.speedup(strategies), member.best(strategies)
    return Cell("–", key=-1) if ratio is None or best is None else Cell(f"{number(ratio)}×", _named(best), ratio)


def _named(best: Best) -> str:
    return f"{best.strategy}, {number(best.tokens_per_s)}"
