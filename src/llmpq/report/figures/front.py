"""The front of speed and quality: the fastest plan for every amount of damage, and where the strategies' plans lie beside it."""

import plotly.graph_objects as go

from llmpq.report.experiment import Document, Experiment
from llmpq.report.figures.base import Figure, Row, axis, label, layout
from llmpq.report.format import gap_percent, number
from llmpq.report.palette import DEVICE_COLOURS, FOCUS, OTHER

ROOM = 0.16  # of the width of the data, for names beside the outermost points
SIGHT = 1.3  # times the largest damage: how far off the quality budget is still drawn


def pareto_front(experiment: Experiment, summary: Document) -> Figure | None:
    """One row per point of pareto.json's fronts and one per strategy's plan; None without a front of two points or more.

    Columns: ``memory_factor`` of a front's point; the ``strategy`` of a plan, ``chosen`` 1 for the one in focus; predicted tokens/s,
    Σ omega, proven gap; ``quality_budget`` is the problem's own, if it has one.
    """
    budget = experiment.problem["objective"].get("quality_budget")
    rows: list[Row] = [
        {"memory_factor": front["memory_factor"], "strategy": None, "chosen": 0, "tokens_per_s": point["tokens_per_s"],
         "omega_sum": point["omega_sum"], "gap": point["gap"], "quality_budget": budget}
        for front in (experiment.front or {"fronts": []})["fronts"] for point in front["points"] if point["tokens_per_s"] is not None
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    for run in experiment.runs:
        plan = run.plan
        rows.append({
            "memory_factor": None, "strategy": run.strategy, "chosen": int(run.strategy == summary["verdict"]["focus"]),
            "tokens_per_s": plan["predicted"]["tokens_per_s"], "omega_sum": plan["omega_sum"], "gap": plan["certificate"]["gap"],
            "quality_budget": budget,
        })  # fmt: skip
    allowed = "" if budget is None else f" This experiment allows a damage of {number(budget)}"
    allowed += "" if budget is None else ": the dotted line." if _in_sight(rows) else ", more than any plan here does."
    return Figure(
        name="pareto_front",
        title="The front of speed and quality",
        caption=(
            "Right is faster, down is better. Each point of the line is the fastest plan that does no more damage (Σ omega), proved within "
            "its gap; plans between two points were not asked for. The diamond is the plan chosen here, the grey points are the other "
            f"strategies.{allowed}"
        ),
        source="predicted by the planner",
        rows=rows,
        draw=_draw,
    )


def _in_sight(rows: list[Row]) -> bool:
    """Whether the quality budget lies near enough to the points to be drawn without squeezing them."""
    budget = rows[0]["quality_budget"]
    return budget is not None and budget <= SIGHT * max(row["omega_sum"] for row in rows)


def _draw(rows: list[Row]) -> go.Figure:
    figure = go.Figure()
    fronts = list(dict.fromkeys(row["memory_factor"] for row in rows if row["strategy"] is None))
    for index, factor in enumerate(fronts):
        mine = [row for row in rows if row["strategy"] is None and row["memory_factor"] == factor]
        name = "fastest plans" if factor == 1 else f"with {factor:g} × the memory"
        colour = FOCUS if factor == 1 else DEVICE_COLOURS[index % len(DEVICE_COLOURS)]
        # Between two points nothing faster is known: the line goes up only where the next plan is reached.
        figure.add_scatter(
            x=[row["tokens_per_s"] for row in mine], y=[row["omega_sum"] for row in mine], mode="lines+markers", name=name,
            line={"shape": "vh", "width": 2, "color": colour}, marker={"size": 7, "color": colour}, cliponaxis=False, hoverinfo="text",
            hovertext=[_hover(row, name) for row in mine],
        )  # fmt: skip
    plans = [row for row in rows if row["strategy"] is not None]
    figure.add_scatter(
        x=[row["tokens_per_s"] for row in plans], y=[row["omega_sum"] for row in plans], mode="markers+text", showlegend=False,
        cliponaxis=False, text=[label(row["strategy"]) for row in plans], textposition=_places(plans), textfont={"size": 12},
        marker={"opacity": 1, "size": [14 if row["chosen"] else 10 for row in plans],
                "color": [FOCUS if row["chosen"] else OTHER for row in plans],
                "symbol": ["diamond" if row["chosen"] else "circle" for row in plans], "line": {"width": 1.5, "color": "#ffffff"}},
        hoverinfo="text", hovertext=[_hover(row, row["strategy"]) for row in plans],
    )  # fmt: skip
    if _in_sight(rows):
        figure.add_hline(y=rows[0]["quality_budget"], line={"color": "#d0342c", "width": 1.5, "dash": "dot"})
    rates = [row["tokens_per_s"] for row in rows]
    room = ROOM * (max(rates) - min(rates)) or 0.1 * max(rates)
    figure.update_layout(layout(
        380, xaxis=axis(range=[min(rates) - room, max(rates) + room], nticks=7, title="tokens/s, predicted"),
        yaxis=axis(rangemode="tozero", nticks=7, title="damage, Σ omega"),
    ))  # fmt: skip
    return figure


def _places(plans: list[Row]) -> list[str]:
    """The chosen plan's name lies to the right of the front, the others' to the left; plans at one place take turns."""
    seen: dict[tuple[float, float], int] = {}
    places = []
    for row in plans:
        place = (round(row["tokens_per_s"], 3), round(row["omega_sum"], 6))
        turn = seen[place] = seen.get(place, -1) + 1
        places.append("bottom right" if row["chosen"] else ("top left", "bottom left", "middle left")[turn % 3])
    return places


def _hover(row: Row, name: str) -> str:
    gap = "no proof" if row["gap"] is None else f"gap {gap_percent(row['gap'])}"
    return f"<b>{label(name)}</b><br>{number(row['tokens_per_s'])} tokens/s<br>Σ omega {number(row['omega_sum'])}<br>{gap}"
