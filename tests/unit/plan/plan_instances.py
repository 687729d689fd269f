"""Small random planning problems, and a planner that tries every decision there is: the judge of the real one."""

import copy
import functools
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("prefill", "decode")
ENDS = ("embedding", "head")


SCALE = {"16": 0.0, "8": 0.1, "4": 1.0}


def random_problem(seed: int) -> dict[str, Any]:
    """A problem with up to 5 layers, 3 devices, 3 options and 6 slots; some have no plan, some are best solved with fewer devices.

    Half offer a choice of end options, a third a choice of cache precisions, a third have devices that share hardware, a fifth have two
    devices that can be exchanged, a quarter many plans of the same value.
    """
    draw = random.Random(seed)
    layers, names = draw.randint(1, 5), draw.sample(["ash", "birch", "cedar"], draw.randint(1, 3))
    caches = {"16": draw.randint(0, 20)}
    known = ["16", "8", "4"]
    if draw.random() < 0.35:
        caches["8"], known = caches["16"] // 2, ["16", "8", "4", "16/kv8", "4/kv8"]
    options = draw.sample(known, draw.randint(1, 3))
    ends = draw.choice([["16"], ["16", "8"], ["8", "16", "4"]]) if draw.random() < 0.6 else ["16"]
    slots = draw.randint(1, 6)
    devices = [_device(draw, name, options, ends, slots) for name in names]
    for device in devices:
        device["memory_bytes"] = _memory(draw, device, caches["16"], layers, len(devices))
    alike = len(devices) > 1 and draw.random() < 0.3
    if alike:
        devices[1] = {**copy.deepcopy(devices[0]), "name": devices[1]["name"]}
    if draw.random() < 0.35:
        devices[-1]["uses"] = draw.choice([[names[0], "oak"], names, [names[-1], "oak"]])
    slow = draw.choice([0.0, 0.5, 20.0])
    everywhere = draw.choice([1.0, 10.0, 1000.0])
    links = [
        {"from": a, "to": b, "alpha_ms": slow if alike else round(draw.uniform(0, 1) * slow, 3), "bytes_per_ms": everywhere}
        for a, b in itertools.permutations(names, 2)
    ]
    omega = {option: _sensitivity(draw, option, layers) for option in options}
    end_omega = {end: {option: round(SCALE[option] * draw.uniform(0, 0.5), 6) for option in ends} for end in ENDS}
    objective = (
        {"theta_ms": draw.choice([0.0, 5.0, 50.0])} if draw.random() < 0.5 else {"quality_budget": draw.choice([0.0, 0.1, 0.5, 1.0])}
    )
    problem = {
        "name": f"random-{seed}",
        "source": "computed",
        "model": {"name": "tiny", "layers": layers},
        "workload": {"requests": slots * draw.randint(1, 2), "slots": slots, "prompt_tokens": 4, "new_tokens": draw.randint(1, 5)},
        "schedule": "barrier",
        "overlapped_sends": draw.random() < 0.7,
        "options": options,
        "end_options": ends,
        "tied_embeddings": draw.random() < 0.5,
        "micro_batches": _micro_batches(draw, slots),
        "kv_bytes_per_layer": caches["16"] if len(caches) == 1 and draw.random() < 0.8 else caches,
        "activation_bytes_per_token": draw.choice([0, 1, 10]),
        "token_bytes": 1,
        "devices": devices,
        "links": links,
        "omega": omega,
        "end_omega": end_omega,
        "objective": objective,
    }
    for device in devices if random.Random(f"shared {seed}").random() < 0.3 else []:
        for option in device["embedding"].keys() & device["head"].keys():
            device["head"][option]["shared_bytes"] = min(device[end][option]["resident_bytes"] for end in ENDS) // 2
    return _coarse(problem) if draw.random() < 0.25 else problem


def _coarse(problem: dict[str, Any]) -> dict[str, Any]:
    """Times in whole ms and sensitivities in quarters: many plans tie."""
    for device in problem["devices"]:
        for part in (part for key in ("options", *ENDS) for part in device[key].values()):
            for phase in PHASES:
                part[f"{phase}_ms"] = {size: round(ms) for size, ms in part[f"{phase}_ms"].items()}
    problem["omega"] = {option: [round(4 * value) / 4 for value in row] for option, row in problem["omega"].items()}
    return problem


def _sensitivity(draw: random.Random, option: str, layers: int) -> list[float]:
    weights, _, cache = option.partition("/kv")
    scale = SCALE[weights] + (0.05 if cache else 0.0)
    return [round(scale * draw.uniform(0.1, 2) / layers, 6) for _ in range(layers)]


def _micro_batches(draw: random.Random, slots: int) -> dict[str, Any]:
    if draw.random() < 0.5:
        return {}
    ragged = [size for size in range(1, slots) if slots % size]
    if ragged and draw.random() < 0.5:
        return {"prefill": sorted({1, draw.choice(ragged)}), "decode": [draw.choice(ragged)]}
    return {"prefill": sorted({1, draw.randint(1, slots)}), "decode": sorted({draw.randint(1, slots), slots})}


def _device(draw: random.Random, name: str, options: list[str], ends: list[str], slots: int) -> dict[str, Any]:
    speed = draw.choice([1.0, 1.0, 2.0, 8.0])

    def part(size: int, scale: float = 1.0) -> dict[str, Any]:
        tables = {}
        for phase in PHASES:
            base, each = draw.uniform(0.1, 3) * speed * scale, draw.uniform(0, 2) * speed * scale
            tables[f"{phase}_ms"] = {str(v): round(base + each * v, 4) for v in range(1, slots + 1)}
        return {"resident_bytes": size, "stored_bytes": size, **tables}

    def some(names: list[str]) -> list[str]:
        return [option for option in names if draw.random() < 0.85] or names[:1]

    def end(least: int, scale: float) -> dict[str, Any]:
        return {option: part(draw.randint(0, 4 * int(option)) + least, scale) for option in some(ends)}

    return {
        "name": name,
        "type": "tree",
        "memory_bytes": 0,
        "options": {option: part(10 * int(option.partition("/")[0]) + draw.randint(-5, 5)) for option in some(options)},
        "embedding": end(0, 0.2),
        "head": end(5, 0.5),
        "workspace_bytes": {phase: {str(v): draw.randint(0, 8) * v for v in range(1, slots + 1)} for phase in PHASES},
        "overhead_ms": {"prefill": 0.1, "decode": 0.05} if draw.random() < 0.5 else {},
    }


def _memory(draw: random.Random, device: dict[str, Any], kv: int, layers: int, devices: int) -> int:
    sizes = [part["resident_bytes"] + kv for part in device["options"].values()]
    needed = draw.uniform(min(sizes), max(sizes)) * layers / devices * draw.uniform(0.7, 2.0)
    return int(needed + 100)


@dataclass(frozen=True)
class Decision:
    """Everything there is to choose, with what it costs."""

    devices: tuple[str, ...]
    xi: int
    eta: int
    sizes: tuple[int, ...]
    options: tuple[str, ...]
    ends: tuple[str, str]
    total_ms: float
    omega: float
    objective_ms: float


def balanced(total: int, at_most: int) -> list[int]:
    parts = math.ceil(total / at_most)
    return [total // parts + (1 if k < total % parts else 0) for k in range(parts)]


def micro_batch_choices(problem: dict[str, Any]) -> list[tuple[int, int]]:
    """Every distinct pair of largest sizes that the allowed sizes lead to."""
    slots = problem["workload"]["slots"]
    every = list(range(1, slots + 1))
    listed = problem.get("micro_batches", {})
    if problem.get("no_sizes_left"):
        return []
    found = set()
    for eta, xi in itertools.product(listed.get("decode") or every, listed.get("prefill") or every):
        if xi <= eta:
            decode = balanced(slots, eta)
            found.add((max(max(balanced(batch, xi)) for batch in decode), max(decode)))
    return sorted(found)


def every_decision(problem: dict[str, Any]) -> Iterator[Decision]:
    """All plans that fit in memory; the quality budget is left to the caller."""
    layers, devices = problem["model"]["layers"], {device["name"]: device for device in problem["devices"]}
    for count in range(1, min(len(devices), layers) + 1):
        for names in itertools.permutations(devices, count):
            hardware = [part for name in names for part in devices[name].get("uses", [name])]
            if len(set(hardware)) < len(hardware):
                continue
            for cut in itertools.combinations(range(1, layers), count - 1):
                sizes = tuple(b - a for a, b in itertools.pairwise((0, *cut, layers)))
                chain = [devices[name] for name in names]
                for ends in itertools.product(chain[0]["embedding"], chain[-1]["head"]):
                    for xi, eta in micro_batch_choices(problem):
                        yield from _with_options(problem, chain, sizes, ends, xi, eta)


def _with_options(
    problem: dict[str, Any], devices: list[dict[str, Any]], sizes: tuple[int, ...], chosen: tuple[str, str], xi: int, eta: int
) -> Iterator[Decision]:
    """Every assignment of options for one order, cut, pair of end options and pair of micro-batches, priced together as arrays."""
    caches = problem["kv_bytes_per_layer"]
    caches = caches if isinstance(caches, dict) else {"16": caches}
    slots = problem["workload"]["slots"]
    decode = balanced(slots, eta)
    batches = {"decode": decode, "prefill": [size for batch in decode for size in balanced(batch, xi)]}
    owner = [device for device, size in zip(devices, sizes, strict=True) for _ in range(size)]
    choices = list(itertools.product(*(list(device["options"]) for device in owner)))
    stage_of = np.repeat(np.arange(len(devices)), sizes)
    fits = np.ones(len(choices), dtype=bool)
    stage_ms = {phase: np.zeros((len(devices), len(batches[phase]), len(choices))) for phase in PHASES}
    for j, device in enumerate(devices):
        mine = [i for i, owned in enumerate(stage_of) if owned == j]
        ends = [device["embedding"][chosen[0]]] if j == 0 else []
        ends += [device["head"][chosen[1]]] if j == len(devices) - 1 else []
        kept = sum(end["resident_bytes"] for end in ends)
        if len(ends) == 2 and chosen[0] == chosen[1]:
            whole = min(end["resident_bytes"] for end in ends) if problem["tied_embeddings"] else 0
            kept -= ends[1].get("shared_bytes", whole)
        work = max(device["workspace_bytes"][phase][str(size)] for phase in PHASES for size in batches[phase])
        layer = {o: part["resident_bytes"] + caches[o.partition("/kv")[2] or "16"] for o, part in device["options"].items()}
        used = np.array([sum(layer[choice[i]] for i in mine) for choice in choices])
        fits &= used + work + kept <= device["memory_bytes"]
        for phase in PHASES:
            fixed = device["overhead_ms"].get(phase, 0.0)
            for k, size in enumerate(batches[phase]):
                column = {option: part[f"{phase}_ms"][str(size)] for option, part in device["options"].items()}
                ms = fixed + sum(end[f"{phase}_ms"][str(size)] for end in ends)
                stage_ms[phase][j, k] = [ms + sum(column[choice[i]] for i in mine) for choice in choices]
    if not fits.any():
        return
    total = _total_ms(problem, devices, batches, stage_ms)
    theta = problem["objective"].get("theta_ms", 0.0)
    for index in np.flatnonzero(fits):
        omega = sum(problem["omega"][option][i] for i, option in enumerate(choices[index]))
        omega += sum(problem["end_omega"][end][option] for end, option in zip(ENDS, chosen, strict=True))
        names = tuple(device["name"] for device in devices)
        yield Decision(names, xi, eta, sizes, choices[index], chosen, float(total[index]), omega, float(total[index]) + theta * omega)


def _total_ms(
    problem: dict[str, Any], devices: list[dict[str, Any]], batches: dict[str, list[int]], stage_ms: dict[str, np.ndarray]
) -> np.ndarray:
    """The makespan formula of the contract for each column."""
    names, tokens = [device["name"] for device in devices], problem["workload"]["new_tokens"]
    link = {(entry["from"], entry["to"]): entry for entry in problem["links"]}

    def message(a: str, b: str, payload: float) -> float:
        return link[a, b]["alpha_ms"] + payload / link[a, b]["bytes_per_ms"]

    once, per_round = {}, {}
    for phase in PHASES:
        length = problem["workload"]["prompt_tokens"] if phase == "prefill" else 1
        largest = int(np.argmax(batches[phase]))
        stages = [table.copy() for table in stage_ms[phase]]
        sends = []
        for j, (a, b) in enumerate(itertools.pairwise(names)):
            times = np.array([message(a, b, size * length * problem["activation_bytes_per_token"]) for size in batches[phase]])[:, None]
            if problem["overlapped_sends"]:
                sends.append(np.broadcast_to(times, stages[j].shape))
            else:
                stages[j] += times
        every = np.array(stages + sends)
        once[phase] = every[:, largest].sum(axis=0) + (every.sum(axis=1) - every[:, largest]).max(axis=0)
        per_round[phase] = every.sum(axis=1).max(axis=0), every[:, largest].sum(axis=0)
    if tokens == 1:
        return once["prefill"]
    back = message(names[-1], names[0], max(batches["decode"]) * problem["token_bytes"]) if len(names) > 1 else 0.0
    busiest, trip = per_round["decode"]
    return once["prefill"] + (tokens - 2) * np.maximum(busiest, trip + back) + once["decode"]


def within(problem: dict[str, Any], omega: float) -> bool:
    budget = problem["objective"].get("quality_budget")
    return budget is None or omega <= budget + 1e-9 * max(1.0, budget)


@functools.cache
def best_of_seed(seed: int) -> Decision | None:
    return best_decision(random_problem(seed))


def best_decision(problem: dict[str, Any]) -> Decision | None:
    """The least objective over all decisions that keep every constraint; None where there is none."""
    feasible = (decision for decision in every_decision(problem) if within(problem, decision.omega))
    return min(feasible, key=lambda decision: decision.objective_ms, default=None)


def within_memory(problem: dict[str, Any]) -> bool:
    """Whether any decision fits in memory, whatever its quality."""
    return next(every_decision(problem), None) is not None


GOLDEN = json.loads((Path(__file__).parents[2] / "lp" / "problem.json").read_text())


def rich_problem(**changes: Any) -> dict[str, Any]:
    """The golden problem where every device also offers 8-bit ends and 4-bit layers with an 8-bit cache, and slow and old share a board."""
    problem = copy.deepcopy(GOLDEN)
    for device in problem["devices"]:
        for end, size in (("embedding", 50), ("head", 60)):
            device[end]["8"] = {**device[end]["16"], "resident_bytes": size, "stored_bytes": size - 10}
        device["options"]["4/kv8"] = {**device["options"]["4"], "stored_bytes": 49}
    problem["devices"][1]["uses"], problem["devices"][2]["uses"] = ["slow", "board"], ["board"]
    problem["options"].append("4/kv8")
    problem["omega"]["4/kv8"] = [value + 0.05 for value in problem["omega"]["4"]]
    problem["kv_bytes_per_layer"] = {"16": 20, "8": 10}
    problem |= {"end_options": ["16", "8"], "end_omega": {"embedding": {"8": 0.01}, "head": {"8": 0.02}}}
    return {**problem, **changes}


# Bytes per layer, and time against 16 bit in prefill and in decode: roughly what SmolLM2's options do on a CPU.
OPTIONS = {"16": (7.1e6, 1.0, 1.0), "8": (3.6e6, 2.0, 1.0), "w8a8": (3.5e6, 0.7, 0.6), "4": (1.9e6, 2.6, 1.1), "3": (1.5e6, 4.0, 3.0)}
DAMAGE = {"16": 0.0, "8": 0.003, "w8a8": 0.15, "4": 1.0, "3": 4.5}


def cluster_problem(
    speeds: list[float], objective: dict[str, float], *, seed: int = 1, layers: int = 30, slots: int = 32
) -> dict[str, Any]:
    """A problem of the default experiment's size: one device per slow-down, budgets that 16 bit everywhere does not fit."""
    draw = random.Random(seed)
    prompt, new = 128, 32
    sizes = sorted({size for m in range(1, slots + 1) for size in (-(-slots // m), slots // m)} | set(range(1, 17)))
    kv = slots * (prompt + new) * 2 * 192 * 4
    weight = [draw.lognormvariate(0, 0.6) for _ in range(layers)]
    omega = {o: [round(d * w / sum(weight) * draw.uniform(0.8, 1.25), 9) for w in weight] for o, d in DAMAGE.items()}

    def part(size: float, slow: float, prefill: float, decode: float) -> dict[str, Any]:
        return {
            "resident_bytes": int(size),
            "stored_bytes": int(0.9 * size),
            "prefill_ms": {str(v): round(slow * (0.4 + prefill * 1.52 * v), 4) for v in sizes},
            "decode_ms": {str(v): round(slow * decode * (0.9 + 0.16 * v), 4) for v in sizes},
        }

    def device(number: int, slow: float) -> dict[str, Any]:
        return {
            "name": f"device{number}",
            "type": f"slow-down {slow}",
            "memory_bytes": int(77e6 + layers / len(speeds) * (7.1e6 * 0.5 + kv) * 1.15),
            "options": {o: part(size, slow, p, d) for o, (size, p, d) in OPTIONS.items()},
            "embedding": {"16": part(56.6e6, slow, 0.02, 0.02), "8": part(28.3e6, slow, 0.02, 0.02)},
            "head": {"16": part(56.6e6, slow, 0.3, 4.0), "8": part(28.5e6, slow, 0.4, 2.5)},
            "workspace_bytes": {"prefill": {str(v): v * prompt * 18432 for v in sizes}, "decode": {str(v): v * 393216 for v in sizes}},
            "overhead_ms": {"prefill": 0.3, "decode": 0.2},
        }

    devices = [device(number, slow) for number, slow in enumerate(speeds)]
    return {
        "name": "cluster",
        "source": "computed",
        "model": {"name": "like-smollm2", "layers": layers},
        "workload": {"requests": slots, "slots": slots, "prompt_tokens": prompt, "new_tokens": new},
        "schedule": "barrier",
        "overlapped_sends": True,
        "options": list(OPTIONS),
        "end_options": ["16", "8"],
        "reference_option": "4",
        "kv_bytes_per_layer": kv,
        "activation_bytes_per_token": 2304,
        "token_bytes": 8,
        "devices": devices,
        "links": [
            {"from": a["name"], "to": b["name"], "alpha_ms": 0.3, "bytes_per_ms": 5e5} for a, b in itertools.permutations(devices, 2)
        ],
        "omega": omega,
        "end_omega": {"embedding": {"8": 0.004}, "head": {"8": 0.02}},
        "objective": objective,
    }
