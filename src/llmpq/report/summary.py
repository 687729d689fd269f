"""The comparison of an experiment's strategies as one artifact (summary.json) and one table (summary.csv)."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.report.experiment import Document, Experiment, Run
from llmpq.report.paired import compare_quality
from llmpq.report.verdict import focus_strategy, verdict

JUDGED = ("layer", "head")  # the parts whose fits can mark a cost model as degraded (cost/latency.py)
PHASES = ("prefill_s", "decode_s", "total_s")
_TASK = ("task", "accuracy", "low", "high", "questions", "chance")


def summarise(experiment: Experiment) -> Document:
    """The body of summary.json: one entry per strategy, then the verdict drawn from these very numbers.

    Seconds, bytes and tokens/s as named; ``error_percent`` is 100·(predicted − measured) / measured; a perplexity's standard error is
    exp(nll)·se(nll) (delta method); ``from_16_bit`` is the mean over the tokens of all texts. What was not measured is null.
    """
    problem = experiment.problem
    schedule = _schedule(experiment)
    body: Document = {
        "experiment": experiment.name,
        "source": "simulated" if experiment.simulated else problem["source"],
        **({"note": problem["description"]} if "description" in problem else {}),
        "served": experiment.served,
        "speed_claimed": all((run.serve or {}).get("speed_claimed", True) for run in experiment.runs),
        "model": problem["model"].get("name", problem["name"]),
        "layers": problem["model"]["layers"],
        "workload": {key: problem["workload"][key] for key in ("requests", "slots", "prompt_tokens", "new_tokens")},
        "schedule": schedule,
        **_engine(experiment),
        "objective": problem["objective"],
        "reference_option": problem.get("reference_option", "4"),
        "problem_sha256": artifacts.body_digest(problem),
        "degraded_fits": [
            {"device": cost["device"], "heldout_percent": 100 * max(row["heldout_mape"] for row in cost["fits"] if row["part"] in JUDGED)}
            for cost in experiment.costs
            if cost.get("degraded")
        ],
        "strategies": [_strategy(experiment, run) for run in experiment.runs],
    }
    priced = next((run.plan["offload"] for run in experiment.runs if run.plan.get("offload", {}).get("wins")), None)
    if priced is not None:
        body["offload_wins"] = {"option": priced["option"], "total_s": priced["prefill_s"] + priced["decode_s"]}
    if experiment.without_plan:
        keys = ("strategy", "status", "message")
        body["without_plan"] = [{key: plan[key] for key in keys} for plan in experiment.without_plan]
    _add_paired_quality(experiment, body["strategies"])
    return {**body, "verdict": verdict(body)}


def _schedule(experiment: Experiment) -> str:
    """The one schedule that all runs had; the problem's where nothing was served."""
    ran = {run.serve["schedule"]: run.strategy for run in experiment.runs if run.serve}
    if len(ran) > 1:
        (one, first), (other, second), *_ = ran.items()
        found = f"{second} ran the schedule {other}, {first} {one}; serve one of them again"
        raise ArtifactError(f"{experiment.directory / second}/serve.json: key 'schedule': {found}")
    return next(iter(ran), str(experiment.problem["schedule"]))


def _engine(experiment: Experiment) -> Document:
    """``engine`` where another program than llmpq's own runtime served: its name and version."""
    found = sorted({str(run.serve["engine"]) for run in experiment.runs if run.serve and "engine" in run.serve})
    return {"engine": ", ".join(found)} if found else {}


def _strategy(experiment: Experiment, run: Run) -> Document:
    plan = run.plan
    measured: Document | None = run.serve["throughput"]["measured"] if run.serve else None
    predicted: Document = run.serve["throughput"]["predicted"] if run.serve else run.simulation or plan["predicted"]
    certificate: Document = plan["certificate"]
    if not plan["predicted"]["total_s"]:
        raise ArtifactError(
            f"{experiment.directory / run.strategy}/plan.json: key 'predicted.total_s' is 0: its problem has empty cost tables"
        )
    if predicted["total_s"] is None:
        found = "key 'throughput.predicted': nothing was predicted for the schedule that it ran"
        raise ArtifactError(f"{experiment.directory / run.strategy}/serve.json: {found}; serve the plan again with its problem.json")
    entry: Document = {"strategy": run.strategy, "stages": len(plan["stages"])}
    for key in ("tokens_per_s", *PHASES):
        entry[key] = _beside(predicted[key], measured[key] if measured else None)
    entry["resumed_requests"] = run.serve["resumed_requests"] if run.serve else 0
    formula = plan["schedule"] == "barrier" and plan["predicted"].get("simulated_total_s") is not None
    entry["simulated_total_s"] = plan["predicted"]["simulated_total_s"] if formula else None
    entry["planned_total_s"] = plan["predicted"]["total_s"]
    entry["quality"] = [_text_quality(text) for text in run.quality["texts"]] if run.quality else []
    entry["from_16_bit"] = _from_16_bit(run.quality["texts"]) if run.quality else None
    entry["tasks"] = [{key: task[key] for key in _TASK} for task in run.quality.get("tasks", ())] if run.quality else []
    entry |= {key: plan[key] for key in ("omega_sum", "quality_budget_met")}
    entry["goal_ms"] = _beside(*(_goal_ms(experiment, plan, times) for times in (predicted, measured)))
    entry["bytes"] = _device_bytes(experiment, run)
    entry["micro_batch"] = {phase: plan["micro_batch"][phase] for phase in ("prefill", "decode")}
    entry["planning"] = {key: certificate.get(key) for key in ("seconds", "gap", "status", "solver")}
    entry["options"] = [option for stage in plan["stages"] for option in stage["options"]]
    return entry


def _beside(predicted: float | None, measured: float | None) -> Document:
    error = 100 * (predicted - measured) / measured if predicted is not None and measured else None
    return {"predicted": predicted, "measured": measured, "error_percent": error}


def _goal_ms(experiment: Experiment, plan: Document, times: Document | None) -> float | None:
    """What the planner was asked to make small, for one batch of ``slots`` requests: its time, plus theta · Σ omega in theta mode."""
    if times is None:
        return None
    workload = experiment.problem["workload"]
    batches = math.ceil(workload["requests"] / workload["slots"])
    theta: float = experiment.problem["objective"].get("theta_ms", 0.0)
    return 1000 * float(times["total_s"]) / batches + theta * float(plan["omega_sum"])


def _text_quality(text: Document) -> Document:
    standard_error = math.exp(text["nll_mean"]) * text["nll_se"]
    found = {"text": text["text"], "perplexity": text["perplexity"], "standard_error": standard_error, "tokens": text["tokens"]}
    found |= {key: text.get(key) for key in ("perplexity_low", "perplexity_high")}
    return found | {key: _without_windows(text.get(key)) for key in ("kl", "top1")}


def _without_windows(mean: Document | None) -> Document | None:
    return None if mean is None else {key: mean[key] for key in ("mean", "low", "high")}


def _from_16_bit(texts: list[Document]) -> Document | None:
    """Divergence and agreement over the tokens of all texts; None where the evaluation compared with nothing."""
    if not all("kl" in text for text in texts):
        return None
    tokens = sum(text["tokens"] for text in texts)
    return {key: math.fsum(text[key]["mean"] * text["tokens"] for text in texts) / tokens for key in ("kl", "top1")}


def _add_paired_quality(experiment: Experiment, entries: list[Document]) -> None:
    """Every text's ``against_focus``: the paired difference to the strategy in focus; null for itself and without recorded windows."""
    name = focus_strategy([run.strategy for run in experiment.runs])
    focus = next(run for run in experiment.runs if run.strategy == name)
    for run, entry in zip(experiment.runs, entries, strict=True):
        if run.quality is None or focus.quality is None:
            continue
        texts = [text["text"] for text in run.quality["texts"]]
        if texts != [text["text"] for text in focus.quality["texts"]]:
            raise ArtifactError(
                f"{experiment.directory / run.strategy}/quality.json: key 'texts': not the texts of {name}; delete it and evaluate again"
            )
        found = compare_quality(focus.quality, run.quality) if run is not focus else [None] * len(texts)
        for text, difference in zip(entry["quality"], found, strict=True):
            text["against_focus"] = difference


def _device_bytes(experiment: Experiment, run: Run) -> list[Document]:
    """Per device of the problem, predicted and measured bytes of the stage on it; null where the plan leaves the device out.

    ``measured`` is the growth of the stage's resident set; ``predicted`` the plan's total (workspace included).
    """
    predicted = {stage["device"]: stage["bytes"] for stage in run.plan["stages"]}
    measured = {stage["device"]: stage["bytes"]["measured"] for stage in run.serve["stages"]} if run.serve else {}
    return [
        {
            "device": device["name"],
            "predicted": predicted.get(device["name"], {}).get("total"),
            "measured": measured.get(device["name"], {}).get("rss_growth"),
            "budget": device["memory_bytes"],
        }
        for device in experiment.devices
    ]


def write_summary(experiment: Experiment, summary: Document, json_path: str | Path, csv_path: str | Path) -> Document:
    """Write summary.json (checked) and summary.csv; returns the document written."""
    document = artifacts.write(json_path, "summary", summary, source=summary["source"], inputs=experiment.files)
    artifacts.write_text(csv_path, to_csv(summary_rows(summary)))
    return document


def summary_rows(summary: Document) -> list[dict[str, Any]]:
    """summary.csv as rows: one per strategy, one column per figure, units in the names."""
    rows = []
    for entry in summary["strategies"]:
        row: dict[str, Any] = {"experiment": summary["experiment"], "strategy": entry["strategy"], "source": summary["source"]}
        for key in ("tokens_per_s", *PHASES):
            row |= {f"{key}_predicted": entry[key]["predicted"], f"{key}_measured": entry[key]["measured"]}
        row["total_s_error_percent"] = entry["total_s"]["error_percent"]
        for text in entry["quality"]:
            row |= {f"perplexity_{text['text']}": text["perplexity"], f"perplexity_{text['text']}_se": text["standard_error"]}
            row |= {f"{key}_{text['text']}": text[key] for key in ("perplexity_low", "perplexity_high")}
            row |= {f"{key}_{text['text']}": text[key]["mean"] if text[key] else None for key in ("kl", "top1")}
            row[f"nll_against_focus_{text['text']}"] = text["against_focus"]["mean"] if text["against_focus"] else None
        for task in entry["tasks"]:
            row |= {f"{task['task']}_{key}": task[key] for key in ("accuracy", "low", "high", "questions")}
        row |= {"omega_sum": entry["omega_sum"], "goal_ms_predicted": entry["goal_ms"]["predicted"]}
        row["goal_ms_measured"] = entry["goal_ms"]["measured"]
        for device in entry["bytes"]:
            name = device["device"]
            row |= {f"bytes_{name}_{key}": device[key] for key in ("predicted", "measured", "budget")}
        row |= {"planning_s": entry["planning"]["seconds"], "gap": entry["planning"]["gap"], "status": entry["planning"]["status"]}
        rows.append(row)
    return rows


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV with a header of every key, in order of first appearance; what is missing is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
