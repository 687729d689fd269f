"""The tables of the page: rows of cells, each with what is shown and what it is sorted by."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.report.experiment import Document, Experiment, Run
from llmpq.report.format import gap_percent, layer_range, mib, number, option_counts, pair, percent


@dataclass(frozen=True)
class Cell:
    """One cell: ``text`` shown, ``detail`` in small print below it, ``key`` for sorting (a number, or the text itself)."""

    text: str
    detail: str = ""
    key: float | str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading and unit, and whether it holds numbers (right-aligned) or words."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table; ``strong`` is the index of the row to set off, ``caption`` is read out and printed with it."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    strong: int | None = None


def comparison(summary: Document) -> Table:
    """Strategy × every figure of the summary."""
    served = summary["served"]
    columns = [
        Column("strategy", numeric=False),
        Column("tokens/s"),
        Column("prefill", "s"),
        Column("decode", "s"),
        *([Column("error", "time")] if served else []),
        *[Column("perplexity", f"{text['text']}, ± s.e.") for text in summary["strategies"][0]["quality"]],
        *([Column("from 16 bit", "KL, same choice")] if _compared(summary) else []),
        *[Column(task["task"], "right, 95 %") for task in summary["strategies"][0]["tasks"]],
        Column("damage", "Σ omega"),
        *[Column(device["device"], f"of {mib(device['budget'])} MiB") for device in summary["strategies"][0]["bytes"]],
        Column("planning", "s"),
        Column("gap"),
    ]
    strong = [entry["strategy"] for entry in summary["strategies"]].index(summary["verdict"]["focus"])
    small = " Large: measured; small: predicted." if served else ""
    caption = f"All strategies ({summary['source']}).{small}"
    return Table(caption, columns, [_comparison_row(entry, served) for entry in summary["strategies"]], strong)


def _comparison_row(entry: Document, served: bool) -> list[Cell]:
    cells = [Cell(entry["strategy"], key=entry["strategy"])]
    cells += [_beside(entry[key], served) for key in ("tokens_per_s", "prefill_s", "decode_s")]
    if served:
        error = entry["total_s"]["error_percent"]
        cells.append(Cell(percent(error, signed=True), key=abs(error)))
    for text in entry["quality"]:
        cells.append(Cell(number(text["perplexity"]), f"± {number(text['standard_error'], 2)}", text["perplexity"]))
    if entry["from_16_bit"] is not None:
        found = entry["from_16_bit"]
        cells.append(Cell(number(found["kl"], 2), f"{percent(100 * found['top1'])} same", found["kl"]))
    for task in entry["tasks"]:
        cells.append(Cell(percent(100 * task["accuracy"]), _interval(task, 100, percent), task["accuracy"]))
    over = "over budget" if entry["quality_budget_met"] is False else ""
    cells.append(Cell(number(entry["omega_sum"]), over, entry["omega_sum"]))
    for device in entry["bytes"]:
        used = device["predicted"] is not None
        shown = device["measured"] if served else device["predicted"]
        cells.append(Cell(mib(shown), mib(device["predicted"]) if served else "", shown) if used else Cell("not used", key=-1))
    planning = entry["planning"]
    cells.append(Cell(number(planning["seconds"]), key=planning["seconds"]))
    gap = planning["gap"]
    cells.append(Cell(gap_percent(gap), planning["status"], gap if gap is not None else float("inf")))
    return cells


def _compared(summary: Document) -> bool:
    return all(entry["from_16_bit"] is not None for entry in summary["strategies"])


def _interval(found: Document, times: float, shown: Callable[[float], str], name: str = "") -> str:
    """``low to high`` of a figure, or nothing where it has no interval."""
    low, high = found[f"{name}low"], found[f"{name}high"]
    return "" if low is None or high is None else f"{shown(times * low)} to {shown(times * high)}"


def quality(summary: Document) -> Table | None:
    """Per strategy and text the perplexity and the distance from 16 bit, with their 95 % intervals; None where nothing was evaluated."""
    rows = []
    for entry in summary["strategies"]:
        for text in entry["quality"]:
            kl, same = text["kl"], text["top1"]
            cells = [Cell(entry["strategy"]), Cell(text["text"])]
            cells += [Cell(number(text["perplexity"]), _interval(text, 1, number, "perplexity_"), text["perplexity"])]
            if _compared(summary):
                cells += [Cell(number(kl["mean"], 2), _interval(kl, 1, lambda value: number(value, 2)), kl["mean"])]
                cells += [Cell(percent(100 * same["mean"]), _interval(same, 100, percent), same["mean"])]
            rows.append([*cells, Cell(f"{text['tokens']:,}", key=text["tokens"])])
    if not rows:
        return None
    columns = [Column("strategy", numeric=False), Column("text", numeric=False), Column("perplexity", "95 %")]
    if _compared(summary):
        columns += [Column("KL from 16 bit", "nats a token, 95 %"), Column("same first choice", "as 16 bit, 95 %")]
    caption = (
        "Quality text by text. Small: 95 % intervals over windows (Student's; a perplexity's is that of the log-loss, exponentiated), "
        "which say how far other text of the kind may differ."
    )
    return Table(caption, [*columns, Column("tokens", "scored")], rows)


def _beside(value: Document, served: bool) -> Cell:
    if not served:
        return Cell(number(value["predicted"]), key=value["predicted"])
    return Cell(number(value["measured"]), number(value["predicted"]), value["measured"])


def paired(summary: Document) -> Table | None:
    """Perplexity against the strategy in focus, window by window, in percent; None where no windows were recorded."""
    rows = []
    for entry in summary["strategies"]:
        for text in entry["quality"]:
            found = text["against_focus"]
            if found is not None:
                mean, low, high = (100 * math.expm1(found[key]) for key in ("mean", "low", "high"))
                interval = f"{percent(low, signed=True)} to {percent(high, signed=True)}"
                rows.append([
                    Cell(entry["strategy"]), Cell(text["text"]), Cell(percent(mean, signed=True), key=mean), Cell(interval, key=low),
                    Cell(str(found["windows"]), key=found["windows"]), Cell(_FOUND[found["verdict"]]),
                ])  # fmt: skip
    if not rows:
        return None
    focus = summary["verdict"]["focus"]
    columns = [
        Column("strategy", numeric=False), Column("text", numeric=False), Column("perplexity", f"against {focus}"),
        Column("interval", "95 %"), Column("windows"), Column("finding", numeric=False),
    ]  # fmt: skip
    caption = (
        f"Perplexity against {focus}, window by window. All strategies read the same windows, so that what is hard about a text drops out "
        "and smaller differences can be told."
    )
    return Table(caption, columns, rows)


_FOUND = {"worse": "higher perplexity", "better": "lower perplexity", "same": "no difference that these windows show"}


def stages(run: Run) -> Table:
    """What one plan put where, and how each stage did."""
    columns = [
        Column("stage", numeric=False),
        Column("holds", numeric=False),
        Column("layers × option", numeric=False),
        Column("prefill", "ms per micro-batch"),
        Column("decode", "ms per micro-batch"),
        *([Column("busy", "share of the run")] if run.serve else []),
        Column("memory", "MiB"),
    ]
    rows = []
    for index, stage in enumerate(run.plan["stages"]):
        served = run.serve["stages"][index] if run.serve else None
        ends = [f"{end} at {stage[f'{end}_option']}" for end in ("embedding", "head") if stage[f"has_{end}"]]
        budget = f"of {mib(stage['bytes']['budget'])}"
        memory = served["bytes"]["measured"]["rss_growth"] if served else stage["bytes"]["total"]
        rows.append([
            Cell(stage["device"], f"stage {index}", index),
            Cell(layer_range(stage["first_layer"], len(stage["options"])), " + ".join(ends)),
            Cell(option_counts(stage["options"])),
            *[_stage_time(stage, served, phase) for phase in ("prefill", "decode")],
            *([Cell(percent(100 * served["utilisation"]), key=served["utilisation"])] if served else []),
            Cell(mib(memory), f"{mib(stage['bytes']['total'])} predicted, {budget}" if served else budget, memory),
        ])  # fmt: skip
    sizes = pair(str(run.plan["micro_batch"]["prefill"]), str(run.plan["micro_batch"]["decode"]))
    return Table(f"{run.strategy}: micro-batches of {sizes} requests (prefill / decode).", columns, rows)


def _stage_time(stage: Document, served: Document | None, phase: str) -> Cell:
    predicted = stage[f"{phase}_ms"]
    if served is None:
        return Cell(number(predicted), key=predicted)
    measured = served[phase]["measured_ms"]["p50"]
    return Cell(number(measured), f"{number(predicted)} predicted", -1 if measured is None else measured)


def planning(experiment: Experiment) -> Table:
    """What each planner did and how sure it is."""
    columns = [
        Column("strategy", numeric=False),
        Column("result", numeric=False),
        Column("gap"),
        Column("seconds"),
        Column("candidates", "order × micro-batches"),
        Column("skipped", "by bounds"),
        Column("solved", "by the program"),
        Column("solver", numeric=False),
    ]
    rows = []
    for run in experiment.runs:
        certificate: dict[str, Any] = run.plan["certificate"]
        tried = certificate.get("candidates") or {}
        counts = [Cell(f"{tried[key]:,}" if tried.get(key) is not None else "–", key=tried.get(key) or 0) for key in _CANDIDATES]
        solver = " ".join(str(certificate[key]) for key in ("solver", "solver_version") if certificate.get(key))
        rows.append([
            Cell(run.strategy), Cell(certificate["status"]), Cell(gap_percent(certificate.get("gap")), key=certificate.get("gap") or 0),
            Cell(number(certificate["seconds"]), key=certificate["seconds"]), *counts, Cell(solver or "–"),
        ])  # fmt: skip
    return Table("Each planner's own goal and proof.", columns, rows)


def fronts(experiment: Experiment) -> list[Table]:
    """Per memory factor of pareto.json, the fastest plan of every quality budget."""
    found = []
    for front in (experiment.front or {"fronts": []})["fronts"]:
        columns = [
            Column("damage", "Σ omega"), Column("predicted", "tokens/s"), Column("batch", "s"), Column("gap"),
            Column("plan", "layers × option", numeric=False),
        ]  # fmt: skip
        rows = []
        for point in front["points"]:
            stages = [f"{stage['device']}: {option_counts(stage['options'])}" for stage in point["plan"]["stages"]]
            rows.append([
                Cell(number(point["omega_sum"]), key=point["omega_sum"]),
                Cell(number(point["tokens_per_s"]), key=point["tokens_per_s"] or 0),
                Cell(number(point["batch_ms"] / 1000), key=point["batch_ms"]), Cell(gap_percent(point["gap"]), key=point["gap"]),
                Cell("; ".join(stages)),
            ])  # fmt: skip
        memory = "" if front["memory_factor"] == 1 else f" with {number(front['memory_factor'])} times the memory"
        missing = f" {front['infeasible']}." if front["infeasible"] else ""
        found.append(Table(f"Speed against quality{memory}: the fastest plan for each amount of damage.{missing}", columns, rows))
    return found


_CANDIDATES = ("enumerated", "pruned", "solved")


def cost_model(experiment: Experiment) -> Table | None:
    """Held-out error of the latency fits, per device and part; None when no cost file was given."""
    rows = []
    for cost in experiment.costs:
        for part in dict.fromkeys(fit["part"] for fit in cost["fits"]):
            fits = [fit for fit in cost["fits"] if fit["part"] == part]
            worst = max(fits, key=lambda fit: fit["heldout_mape"])
            points = sum(fit["points"] for fit in fits)
            rows.append([
                Cell(cost["device"]), Cell(part), *[_heldout(fits, phase) for phase in ("prefill", "decode")],
                Cell(str(points), key=points),
                Cell(percent(100 * worst["heldout_mape"]), f"{worst['phase']}, option {worst['option']}", worst["heldout_mape"]),
            ])  # fmt: skip
    if not rows:
        return None
    columns = [
        Column("device", numeric=False), Column("part", numeric=False), Column("prefill", "mean error"), Column("decode", "mean error"),
        Column("points", "measured"), Column("worst"),
    ]  # fmt: skip
    caption = "How well the latency model predicts measurements it has not seen (points held out of the fit)."
    return Table(caption, columns, rows)


def _heldout(fits: list[Document], phase: str) -> Cell:
    """Mean held-out error of one phase's fits, each weighted by its points."""
    mine = [fit for fit in fits if fit["phase"] == phase]
    if not mine:
        return Cell("–", key=-1)
    error = sum(fit["heldout_mape"] * fit["points"] for fit in mine) / sum(fit["points"] for fit in mine)
    return Cell(percent(100 * error), key=error)


def files(experiment: Experiment, page: Path) -> list[dict[str, str]]:
    """Every artifact the page was made from: where, of which kind of source, when and on which host, with a link relative to ``page``."""
    listed = []
    for path, provenance in experiment.files.items():
        href = os.path.relpath(path.absolute(), page.absolute().parent)
        listed.append({
            "name": _shown(path, experiment.directory), "href": href.replace(os.sep, "/"),
            "source": str(provenance.get("source", "unknown")), "created": str(provenance.get("created", "unknown")),
            "host": str(provenance.get("host", "unknown")), "revision": str(provenance.get("git_revision", "unknown")),
        })  # fmt: skip
    return listed


def _shown(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.as_posix()
