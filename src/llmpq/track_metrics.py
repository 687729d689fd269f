"""The numbers of each artifact that MLflow shows: flat, named, with the unit in the name."""

import re
from collections.abc import Mapping
from typing import Any

from llmpq import planless

Metrics = dict[str, float]


def metrics_of(document: Mapping[str, Any]) -> Metrics:
    """Metrics of one JSON artifact, by its schema; empty for a file without numbers to show."""
    read = _READERS.get(str(document.get("schema", "")).removeprefix("llmpq."))
    found = read(document) if read and planless.reason(document) is None else {}
    return {re.sub(r"[^\w./ -]", "_", key): float(value) for key, value in found.items() if isinstance(value, (int, float))}


def simulated_metrics(simulation: Mapping[str, Any]) -> dict[str, Metrics]:
    """By strategy the times and speed of simulation.json, for those that have a plan."""
    keys = ("prefill_s", "decode_s", "total_s", "tokens_per_s")
    runs = [run for run in simulation["runs"] if planless.reason(run) is None]
    return {run["strategy"]: {f"simulated.{key}": float(run[key]) for key in keys if run[key] is not None} for run in runs}


def _plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    certificate = plan["certificate"]
    found = {f"predicted.{key}": value for key, value in plan["predicted"].items()}
    found |= {"omega_sum": plan["omega_sum"], "objective_ms": plan.get("objective_ms"), "stages": len(plan["stages"])}
    found |= {"planning_s": certificate.get("seconds"), "gap": certificate.get("gap"), "bound": certificate.get("bound")}
    found |= {f"micro_batch.{phase}": plan["micro_batch"][phase] for phase in ("prefill", "decode")}
    for stage in plan["stages"]:
        found[f"bytes_mib.{stage['device']}"] = stage["bytes"]["total"] / 2**20
        found[f"layers.{stage['device']}"] = len(stage["options"])
    options = [option for stage in plan["stages"] for option in stage["options"]]
    return found | {f"layers_at.{option}": options.count(option) for option in sorted(set(options))}


def _serve(serve: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"measured.{key}": value for key, value in serve["throughput"]["measured"].items()}
    predicted, measured = serve["throughput"]["predicted"], serve["throughput"]["measured"]
    if measured.get("total_s") and predicted.get("total_s"):
        found["prediction_error_percent"] = 100 * (predicted["total_s"] - measured["total_s"]) / measured["total_s"]
    found |= {"load_s": serve.get("load_s"), "restarts": serve.get("restarts")}
    for stage in serve["stages"]:
        found[f"busy_s.{stage['device']}"] = stage.get("busy_s")
        for phase in ("prefill", "decode"):
            found[f"{phase}_ms.{stage['device']}"] = (stage[phase].get("measured_ms") or {}).get("p50")
    return found


def _quality(quality: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"evaluate_s": quality.get("seconds"), "reference_s": quality.get("reference", {}).get("seconds")}
    for text in quality["texts"]:
        found |= {f"{key}.{text['text']}": text.get(key) for key in ("perplexity", "perplexity_low", "perplexity_high", "tokens")}
        for key, name in (("kl", "kl_from_16_bit"), ("top1", "same_first_choice")):
            found[f"{name}.{text['text']}"] = text.get(key, {}).get("mean")
    for task in quality.get("tasks", ()):
        found |= {f"accuracy.{task['task']}": task["accuracy"], f"questions.{task['task']}": task["questions"]}
        found |= {f"accuracy_{end}.{task['task']}": task[end] for end in ("low", "high")}
    return found


def _profile(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Median milliseconds of one layer at the largest micro-batch timed, by phase and option."""
    layers = [row for row in profile["rows"] if row["part"] == "layer"]
    largest = max((row["micro_batch"] for row in layers), default=0)
    chosen = sorted((row for row in layers if row["micro_batch"] == largest), key=lambda row: (row["tokens"], row["context"]))
    return {"points": len(profile["rows"])} | {f"layer_ms.{row['phase']}.{row['option']}": row["p50_ms"] for row in chosen}


def _fit(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {f"heldout_mape.{fit['part']}.{fit['phase']}.{fit['option']}": fit["heldout_mape"] for fit in cost["fits"]}


def _links(links: Mapping[str, Any]) -> dict[str, Any]:
    return {f"link_ms.{row['from']}.{row['to']}.{row['bytes']}": row["p50_ms"] for row in links["rows"]}


def _quantise(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if isinstance(value, (int, float)) and key != "version"}


def _indicator(indicator: Mapping[str, Any]) -> dict[str, Any]:
    sums: dict[str, Any] = {key: indicator.get(key) for key in ("seconds", "end_seconds", "unit")}
    sums |= {f"omega.{row['end']}.{row['option']}": row["omega"] for row in indicator.get("ends", ())}
    for row in indicator["rows"]:
        sums[f"omega_sum.{row['option']}"] = sums.get(f"omega_sum.{row['option']}", 0.0) + row["omega"]
    return sums


def _workload(workload: Mapping[str, Any]) -> dict[str, Any]:
    prompts = [len(request["prompt_tokens"]) for request in workload["requests"]]
    return {"requests": len(prompts), "prompt_tokens_total": sum(prompts)}


_READERS = {
    "plan": _plan,
    "serve": _serve,
    "quality": _quality,
    "profile": _profile,
    "cost": _fit,
    "links": _links,
    "quantised": _quantise,
    "quantised_ends": _quantise,
    "indicator": _indicator,
    "workload": _workload,
}
