"""A plausible experiment on disk: what planning, serving and evaluating leave behind, small, without running them."""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts

OPTIONS = ["16", "8", "w8a8-outlier", "w8a8", "4", "3"]
RESIDENT = {"16": 12_700_000, "8": 6_500_000, "w8a8-outlier": 6_950_000, "w8a8": 6_400_000, "4": 2_260_000, "3": 1_780_000}
PREFILL_MS = {"16": 2.6, "8": 7.4, "w8a8-outlier": 2.2, "w8a8": 1.9, "4": 8.1, "3": 9.6}  # per layer and request
DECODE_MS = {"16": 0.30, "8": 0.36, "w8a8-outlier": 0.27, "w8a8": 0.24, "4": 0.33, "3": 1.9}
DAMAGE = {"16": 0.0, "8": 0.002, "w8a8-outlier": 0.02, "w8a8": 0.07, "4": 1.0, "3": 4.4}
KV = 6_291_456
END = {"resident_bytes": 100_000_000, "stored_bytes": 56_623_104, "prefill_ms": 9.0, "decode_ms": 4.0}
SIZES = [1, 2, 4, 8, 16, 32]
CHOICES = {
    "llmpq": (18, ["16"] * 6 + ["w8a8-outlier"] * 10 + ["4"] * 2 + ["w8a8"] * 8 + ["4"] * 4, 8, 16),
    "adabits": (15, ["16"] * 4 + ["8"] * 11 + ["8"] * 7 + ["4"] * 8, 8, 16),
    "pipeedge": (20, ["4"] * 30, 4, 16),
    "uniform": (15, ["4"] * 30, 16, 16),
}


@dataclass(frozen=True)
class Paths:
    """Where the factory put things; ``arguments`` are those of write_report, ``outputs`` inside the experiment's folder."""

    directory: Path
    problem: Path
    indicator: Path
    costs: list[Path]
    strategies: list[str]

    def arguments(self, **changes: Any) -> dict[str, Any]:
        outputs = {"summary": "summary.json", "table": "summary.csv", "page": "report.html", "figures": "figures"}
        inputs = {"problem": self.problem, "indicator": self.indicator, "costs": self.costs, "strategies": self.strategies}
        return {**inputs, **{key: self.directory / name for key, name in outputs.items()}, **changes}


def make_experiment(
    root: Path,
    *,
    name: str = "duo",
    strategies: tuple[str, ...] = ("llmpq", "adabits", "pipeedge", "uniform"),
    devices: tuple[str, ...] = ("fast0", "slow0"),
    texts: tuple[str, ...] = ("wikipedia", "python-docs"),
    objective: dict[str, float] | None = None,
    speed: dict[str, float] | None = None,
    perplexity: dict[str, float] | None = None,
    status: dict[str, str] | None = None,
    source: str = "emulated",
    served: bool = True,
) -> Paths:
    """Write problem, indicator, costs and, per strategy, plan, serve, quality and timeline below ``root``/results.

    ``speed`` multiplies a strategy's measured times, ``perplexity`` sets its perplexity on the first text, ``status`` its certificate's.
    """
    directory = root / "results" / "experiments" / name
    omega = _omega()
    indicator = root / "results" / "indicators" / "tiny" / "gptq" / "variance.json"
    artifacts.write(indicator, "indicator", _indicator(omega), source="measured")
    costs = [root / "results" / "cost" / "default" / "tiny" / f"cpu-{device}.json" for device in devices]
    for path in costs:
        artifacts.write(path, "cost", _cost(path.stem), source=source)
    problem = _problem(name, devices, omega, objective or {"quality_budget": 1.0}, source)
    document = artifacts.write(directory / "problem.json", "problem", problem, source=source, inputs=[indicator, *costs])
    for strategy in strategies:
        folder = directory / strategy
        plan = _plan(document, strategy, (status or {}).get(strategy, "optimal" if strategy == "llmpq" else "heuristic"))
        plan = artifacts.write(folder / "plan.json", "plan", plan, source="computed")
        if served:
            serve = _serve(plan, document, (speed or {}).get(strategy, 1.04), source)
            artifacts.write(folder / "serve.json", "serve", serve, source=source)
            wanted = (perplexity or {}).get(strategy, 16.6 * (1 + 0.3 * plan["omega_sum"]))
            artifacts.write(folder / "quality.json", "quality", _quality(plan, serve, texts, wanted), source="measured")
            (folder / "timeline.json").write_text(json.dumps(_trace(plan, document)), encoding="utf-8")
    return Paths(directory, directory / "problem.json", indicator, costs, list(strategies))


def _omega() -> dict[str, list[float]]:
    generator = random.Random(1)
    shape = [(3.0 if layer in (0, 29) else 1.0) * generator.uniform(0.5, 1.6) + 0.02 * layer for layer in range(30)]
    return {option: [round(DAMAGE[option] * value / sum(shape), 9) for value in shape] for option in OPTIONS}


def _indicator(omega: dict[str, list[float]]) -> dict[str, Any]:
    rows = [{"layer": layer, "option": option, "omega": omega[option][layer]} for layer in range(30) for option in OPTIONS]
    return {
        "model": "tiny",
        "quantizer": "gptq",
        "indicator": "variance",
        "reference_option": "4",
        "unit": 123.4,
        "rows": rows,
        "ends": [{"end": end, "option": "16", "omega": 0.0} for end in ("embedding", "head")],
        "end_unit": 0.0,
        "seconds": 1.5,
        "end_seconds": 0.0,
        "peak_bytes": 10**9,
    }


def _cost(device: str) -> dict[str, Any]:
    fits = [
        {"part": "layer", "phase": phase, "option": option, "form": "terms", "terms": {"v": 1.0, "1": 0.1}, "points": 12,
         "heldout_mape": 0.02 + 0.01 * index}
        for phase in ("prefill", "decode") for index, option in enumerate(OPTIONS)
    ]  # fmt: skip
    return {"model": "tiny", "device": device, "slowdown": 1.0, "fits": fits}


def _table(option_bytes: int, prefill: float, decode: float, factor: float) -> dict[str, Any]:
    return {
        "resident_bytes": option_bytes, "stored_bytes": option_bytes // 2,
        "prefill_ms": {str(size): round(factor * prefill * size, 4) for size in SIZES},
        "decode_ms": {str(size): round(factor * decode * (1 + 0.2 * size), 4) for size in SIZES},
    }  # fmt: skip


def _problem(
    name: str, devices: tuple[str, ...], omega: dict[str, list[float]], objective: dict[str, float], source: str
) -> dict[str, Any]:
    members = []
    for device, factor, memory in zip(devices, itertools.cycle((1.0, 2.0)), itertools.cycle((420 * 2**20, 290 * 2**20)), strict=False):
        members.append({
            "name": device, "type": f"cpu-{device}", "memory_bytes": memory,
            "options": {option: _table(RESIDENT[option], PREFILL_MS[option], DECODE_MS[option], factor) for option in OPTIONS},
            "embedding": {"16": _table(END["resident_bytes"], 0.2, 0.01, factor)},
            "head": {"16": _table(END["resident_bytes"], 9.0, 4.0, factor)},
            "workspace_bytes": {phase: {str(size): 900_000 * size for size in SIZES} for phase in ("prefill", "decode")},
            "overhead_ms": {"prefill": 0.4, "decode": 0.3},
        })  # fmt: skip
    links = [{"from": a, "to": b, "alpha_ms": 0.1, "bytes_per_ms": 1e6} for a in devices for b in devices if a != b]
    return {
        "name": name, "source": source, "model": {"name": "tiny", "layers": 30},
        "workload": {"requests": 32, "slots": 32, "prompt_tokens": 128, "new_tokens": 32}, "schedule": "barrier", "overlapped_sends": True,
        "options": OPTIONS, "end_options": ["16"],
        "reference_option": "4", "micro_batches": {"prefill": SIZES, "decode": SIZES}, "kv_bytes_per_layer": KV,
        "activation_bytes_per_token": 2304, "token_bytes": 8, "devices": members, "links": links, "omega": omega, "objective": objective,
    }  # fmt: skip


def _plan(problem: dict[str, Any], strategy: str, status: str) -> dict[str, Any]:
    cut, options, xi, eta = CHOICES[strategy]
    count = len(problem["devices"])
    cuts = [0, *(cut + (30 - cut) * index // (count - 1) for index in range(count - 1)), 30] if count > 1 else [0, 30]
    ranges = list(itertools.pairwise(cuts))
    stages = [_planned_stage(problem, index, first, options[first:end], xi, eta) for index, (first, end) in enumerate(ranges)]
    prefill = sum(stage["prefill_ms"] for stage in stages) + (32 // xi - 1) * max(stage["prefill_ms"] for stage in stages)
    turn = max(sum(stage["decode_ms"] for stage in stages), 32 // eta * max(stage["decode_ms"] for stage in stages))
    decode = 30 * turn + sum(stage["decode_ms"] for stage in stages) + (32 // eta - 1) * max(stage["decode_ms"] for stage in stages)
    total = (prefill + decode) / 1000
    proved = status != "heuristic"
    omega_sum = sum(problem["omega"][option][layer] for layer, option in enumerate(options))
    budget = problem["objective"].get("quality_budget")
    return {
        "strategy": strategy, "problem_sha256": artifacts.body_digest(problem), "source": problem["source"], "schedule": "barrier",
        "stages": stages,
        "micro_batch": {"prefill": xi, "decode": eta, "prefill_count": 32 // xi, "decode_count": 32 // eta},
        "predicted": {"prefill_s": prefill / 1000, "decode_s": decode / 1000, "total_s": total, "tokens_per_s": 1024 / total,
                      "simulated_total_s": total},
        "omega_sum": omega_sum, "objective_ms": 1000 * total, "quality_budget_met": None if budget is None else omega_sum <= budget + 1e-6,
        "certificate": {"objective": 1000 * total, "bound": 999.2 * total if proved else None, "gap": 0.0008 if proved else None,
                        "solver": "glpk", "solver_version": "5.0", "status": status, "seconds": 3.21, "seed": 0,
                        "candidates": {"enumerated": 42, "pruned": 31, "solved": 11}},
        "binding": [{"stage": len(stages) - 1, "what": "memory", "slack": 1_500_000},
                    {"stage": len(stages) - 1, "what": "prefill", "slack": 0.0}, {"stage": None, "what": "round_trip", "slack": 0.0}],
    }  # fmt: skip


def _planned_stage(problem: dict[str, Any], index: int, first: int, options: list[str], xi: int, eta: int) -> dict[str, Any]:
    device = problem["devices"][index]
    last = first + len(options) == 30
    ends = [part for part, has in (("embedding", index == 0), ("head", last)) if has]
    time = {
        phase: sum(device["options"][option][f"{phase}_ms"][str(size)] for option in options)
        + device["overhead_ms"][phase]
        + sum(device[part]["16"][f"{phase}_ms"][str(size)] for part in ends)
        for phase, size in (("prefill", xi), ("decode", eta))
    }
    amounts = {
        "weights": sum(device["options"][option]["resident_bytes"] for option in options),
        "kv": KV * len(options), **{part: END["resident_bytes"] if part in ends else 0 for part in ("embedding", "head")},
        "workspace": 900_000 * max(xi, eta),
    }  # fmt: skip
    amounts |= {"total": sum(amounts.values()), "budget": device["memory_bytes"]}
    return {
        "device": device["name"], "first_layer": first, "options": options, "has_embedding": index == 0, "has_head": last,
        "embedding_option": "16" if index == 0 else None, "head_option": "16" if last else None,
        "bytes": amounts, "stored_bytes": amounts["weights"] // 2, "prefill_ms": time["prefill"], "decode_ms": time["decode"],
    }  # fmt: skip


def _serve(plan: dict[str, Any], problem: dict[str, Any], slow: float, source: str) -> dict[str, Any]:
    generator = random.Random(plan["strategy"])
    predicted = {key: plan["predicted"][key] for key in ("tokens_per_s", "prefill_s", "decode_s", "total_s")} | {"by": "formula"}
    measured = {key: predicted[key] * slow for key in ("prefill_s", "decode_s", "total_s")} | {
        "tokens_per_s": predicted["tokens_per_s"] / slow
    }
    stages = []
    for stage in plan["stages"]:
        amounts = {key: stage["bytes"][key] for key in ("weights", "kv", "embedding", "head")}
        named = ("device", "first_layer", "options", "embedding_option", "head_option")
        entry: dict[str, Any] = {key: stage[key] for key in named}
        for phase in ("prefill", "decode"):
            middle = stage[f"{phase}_ms"] * slow * generator.uniform(0.94, 1.05)
            spread = {"p10": 0.96 * middle, "p50": middle, "p90": 1.08 * middle}
            predicted_ms, calls = stage[f"{phase}_ms"], 4 if phase == "prefill" else 62
            entry[phase] = {"predicted_ms": predicted_ms, "measured_ms": spread, "micro_batch": 8, "calls": calls}
        total = measured["total_s"]
        entry |= {
            "busy_s": 0.8 * total,
            "cpu_s": 0.7 * total,
            "process_cpu_s": 0.75 * total,
            "send_s": 0.01,
            "wait_s": 0.19 * total,
            "utilisation": 0.8,
            "bubble_s": 0.2 * total,
            "predicted": {"busy_s": 0.8 * total, "utilisation": 0.8, "bubble_s": 0.2 * total},
            "link": {},
        }
        growth = int(0.99 * stage["bytes"]["total"])
        stages.append({**entry, "bytes": {"predicted": stage["bytes"], "measured": {**amounts, "transport": 4096, "rss_growth": growth}}})
    return {
        "strategy": plan["strategy"], "plan_sha256": artifacts.body_digest(plan), "requests_sha256": "a" * 64,
        "weights_sha256": artifacts.digest([stage["options"] for stage in plan["stages"]]), "backend": "cpu", "source": source,
        "schedule": "barrier", "requests": 32, "served_requests": 32, "resumed_requests": 0, "new_tokens": 1024, "load_s": 2.5,
        "restarts": 0, "throughput": {"measured": measured, "predicted": predicted}, "speed_claimed": True, "stages": stages,
    }  # fmt: skip


def _quality(plan: dict[str, Any], serve: dict[str, Any], texts: tuple[str, ...], perplexity: float) -> dict[str, Any]:
    import math

    rows = []
    for index, text in enumerate(texts):
        nll = math.log(perplexity * (1 - 0.28 * index))
        windows = _windows(text, plan["strategy"], nll)
        rows.append(
            {
                "text": text,
                "perplexity": math.exp(nll),
                "nll_mean": nll,
                "nll_se": 0.031,
                "tokens": 4088,
                "windows": 8,
                "nll_windows": windows,
                "perplexity_low": math.exp(nll - 0.07),
                "perplexity_high": math.exp(nll + 0.07),
                "context_tokens": 1,
                "kl": {"mean": 0.02 * (1 + plan["omega_sum"]), "low": 0.01, "high": 0.05, "windows": [0.02] * 8},
                "top1": {"mean": 0.94 - 0.02 * index, "low": 0.9, "high": 0.96, "windows": [0.93] * 8},
            }
        )
    options = [option for stage in plan["stages"] for option in stage["options"]]
    ends = {"embedding_option": plan["stages"][0]["embedding_option"], "head_option": plan["stages"][-1]["head_option"]}
    task = {"task": "continuation", "accuracy": 0.88, "low": 0.8, "high": 0.93, "questions": 100, "chance": 0.25, "seconds": 9.0}
    found = {"strategy": plan["strategy"], "weights_sha256": serve["weights_sha256"], "options": options}
    return {**found, **ends, "texts": rows, "tasks": [task], "seconds": 9.9}


def _windows(text: str, strategy: str, mean: float) -> list[float]:
    """Eight losses around ``mean``: what makes a window hard is common to all strategies, a little is their own."""
    common, own = random.Random(text), random.Random(text + strategy)
    losses = [mean + common.gauss(0, 0.09) + own.gauss(0, 0.004) for _ in range(8)]
    return [loss - sum(losses) / 8 + mean for loss in losses]


def _trace(plan: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    """The barrier schedule with the plan's own times: every prefill chunk in turn, then rounds over the decode micro-batches."""
    events: list[dict[str, Any]] = []
    free = [0.0] * len(plan["stages"])
    sizes = plan["micro_batch"]

    def run(phase: str, micro_batch: int, step: int, ready: float) -> float:
        for rank, stage in enumerate(plan["stages"]):
            start = max(ready, free[rank])
            ready = free[rank] = start + stage[f"{phase}_ms"]
            events.append({
                "name": f"{phase} {micro_batch}", "cat": phase, "ph": "X", "pid": rank, "tid": 0,
                "ts": 1000 * start, "dur": 1000 * stage[f"{phase}_ms"],
                "args": {"micro_batch": micro_batch, "step": step, "rows": sizes[phase], "tokens": 1, "cpu_ms": 1.0},
            })  # fmt: skip
        return ready

    for chunk in range(sizes["prefill_count"]):
        run("prefill", chunk * sizes["decode_count"] // sizes["prefill_count"], chunk, 0.0)
    ready = [max(free)] * sizes["decode_count"]
    for step in range(1, problem["workload"]["new_tokens"]):
        for micro_batch in range(sizes["decode_count"]):
            ready[micro_batch] = run("decode", micro_batch, step, ready[micro_batch])
    names = [
        {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": stage["device"]}} for rank, stage in enumerate(plan["stages"])
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": {"strategy": plan["strategy"]}}
