"""Why there is no plan: the smallest relaxations, worked out by hand and judged by trying every decision."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from plan_instances import best_decision, random_problem, within_memory

from llmpq.errors import InfeasibleError
from llmpq.plan.infeasible import rounded_up
from llmpq.plan.planner import plan

GOLDEN = json.loads((Path(__file__).parents[2] / "lp" / "problem.json").read_text())


def with_memory(*memory_bytes: int, objective: dict[str, float]) -> dict[str, Any]:
    devices = [{**device, "memory_bytes": size} for device, size in zip(GOLDEN["devices"], memory_bytes, strict=True)]
    return {**GOLDEN, "devices": devices, "objective": objective}


def error_of(problem: dict[str, Any]) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as caught:
        plan(problem, "llmpq", solver="highs", gap=0.0)
    return caught.value


def test_memory_that_nothing_fits_names_device_and_bytes() -> None:
    """A layer takes 60 + 20 bytes at least, the ends 100 and 110, the workspace 20.

    With 200 bytes each, the first stage has 80 left (one layer), one between 180 (two), the last 70: 10 bytes short of its layer, on
    whichever device comes last. With one request in place of two, its cache is 10 bytes smaller: 70 bytes a layer.
    """
    objective = {"theta_ms": 1.0}
    error = error_of(with_memory(200, 200, 200, objective=objective))
    assert str(error) == (
        "no plan fits in memory, even with every layer, embedding and head at its smallest option: device 'fast' lacks 10 bytes or device "
        "'slow' lacks 10 bytes or device 'old' lacks 10 bytes (more memory on any one of them would do; so would workload.slots 1 in place "
        "of 2)"
    )
    assert error.details == {
        "reason": "memory",
        "least_omega": None,
        "relaxations": [
            *({"what": "memory", "device": name, "bytes": 10} for name in ("fast", "slow", "old")),
            {"what": "slots", "slots": 1},
        ],
    }
    assert plan(with_memory(210, 200, 200, objective=objective), "llmpq")["stages"][-1]["device"] == "fast"


def test_a_budget_that_memory_forbids_says_so() -> None:
    """Fast last holds one layer, fast first or between up to two: with 4 bits everywhere the sum is 1; 0.5 needs layers 0 and 1 at 16."""
    error = error_of(with_memory(210, 200, 200, objective={"quality_budget": 0.5}))
    assert str(error).startswith(
        "no plan keeps the quality budget: the least sum of omega that fits in memory is 1, objective.quality_budget is 0.5: device '"
    )
    assert str(error).endswith("objective.quality_budget 1)")
    assert error.details["reason"] == "quality"
    assert error.details["least_omega"] == 1.0


def test_an_option_that_others_offer_may_be_the_remedy() -> None:
    """First and last stage have 215 and 205 bytes left: none for a layer at 16 bit (220), two each at 4 bit (80), if slow offers them."""
    problem = copy.deepcopy(GOLDEN)
    problem["devices"] = problem["devices"][:2]
    problem["links"] = problem["links"][:1] + problem["links"][2:3]
    del problem["devices"][1]["options"]["4"]
    for device in problem["devices"]:
        device["memory_bytes"] = 335
    problem["objective"] = {"theta_ms": 1.0}
    error = error_of(problem)
    assert {"what": "option", "option": "4", "end": None, "devices": ["slow"]} in error.details["relaxations"]
    assert "offering option '4' on slow too, as large as elsewhere" in str(error)


def test_a_budget_is_never_rounded_below_what_is_needed() -> None:
    assert rounded_up(0.12345678) == "0.123457"
    assert rounded_up(0.1234561) == "0.123457"
    assert rounded_up(0.5) == "0.5"
    assert rounded_up(1234567.2) == "1.23457e+06"
    assert rounded_up(0.0) == "0"
    for value in (1e-9, 0.3, 2.0000001, 7 / 3):
        assert value <= float(rounded_up(value)) <= value * 1.00001


def infeasible_problems(count: int, first: int) -> list[int]:
    """Seeds of random problems without a plan; memory is made scarce, since most random ones have one, and the KV cache large for half."""
    seeds = []
    seed = first
    while len(seeds) < count:
        if best_decision(scarce(seed)) is None:
            seeds.append(seed)
        seed += 1
    return seeds


def scarce(seed: int) -> dict[str, Any]:
    problem = random_problem(seed)
    for device in problem["devices"]:
        device["memory_bytes"] = int(device["memory_bytes"] * 0.7)
    if seed % 2:
        kv = problem["kv_bytes_per_layer"]
        problem["kv_bytes_per_layer"] = {key: 8 * size for key, size in kv.items()} if isinstance(kv, dict) else 8 * kv
    return problem


def relaxed(problem: dict[str, Any], item: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """The problem after one relaxation; with ``step`` 1 after a little less of it."""
    found = copy.deepcopy(problem)
    if item["what"] == "memory":
        device = next(device for device in found["devices"] if device["name"] == item["device"])
        device["memory_bytes"] += item["bytes"] - step
    elif item["what"] == "quality_budget":
        found["objective"] = {"quality_budget": item["quality_budget"] * (1 - 1e-6 * step) - 1e-8 * step}
    elif item["what"] == "option":
        key = item["end"] or "options"
        parts = [device[key][item["option"]] for device in found["devices"] if item["option"] in device[key]]
        for device in found["devices"]:
            if device["name"] in item["devices"]:
                device[key][item["option"]] = min(parts, key=lambda part: part["resident_bytes"])
    return found


def test_relaxations_are_enough_and_no_less_would_do() -> None:
    """Brute force: with each relaxation there is a plan; with one byte, one request or a little budget less there is none."""
    seen = set()
    for seed in infeasible_problems(60, 2000):
        problem = scarce(seed)
        error = error_of(problem)
        memory_alone = within_memory(problem)
        assert error.details["reason"] == ("quality" if memory_alone else "memory")
        for item in error.details["relaxations"]:
            seen.add(item["what"])
            if item["what"] == "slots":
                judge_slots(problem, item["slots"])
                continue
            assert best_decision(relaxed(problem, item)) is not None, (seed, item)
            if item["what"] != "option" and relaxed(problem, item, 1)["objective"].get("quality_budget", 0.0) >= 0:
                assert best_decision(relaxed(problem, item, 1)) is None, (seed, item)
        judge_what_is_missing(problem, error)
    assert seen >= {"memory", "slots", "quality_budget"}


def judge_slots(problem: dict[str, Any], slots: int) -> None:
    """With that many requests resident there is a plan, with one more (if that is still fewer than now) there is none."""
    assert best_decision(with_slots(problem, slots)) is not None
    if slots + 1 < problem["workload"]["slots"]:
        assert best_decision(with_slots(problem, slots + 1)) is None


def with_slots(problem: dict[str, Any], slots: int) -> dict[str, Any]:
    found, before = copy.deepcopy(problem), problem["workload"]["slots"]
    found["workload"].update(slots=slots, requests=slots)
    kv = found["kv_bytes_per_layer"]
    shrink = {key: -(-size * slots // before) for key, size in (kv if isinstance(kv, dict) else {"16": kv}).items()}
    listed = found.get("micro_batches", {})
    kept = {phase: [size for size in sizes if size <= slots] for phase, sizes in listed.items() if sizes}
    return {**found, "kv_bytes_per_layer": shrink, "micro_batches": kept, "no_sizes_left": any(not sizes for sizes in kept.values())}


def judge_what_is_missing(problem: dict[str, Any], error: InfeasibleError) -> None:
    """A device that is not named would not help with any memory at all."""
    named = {item["device"] for item in error.details["relaxations"] if item["what"] == "memory"}
    for device in problem["devices"]:
        if device["name"] not in named:
            huge = copy.deepcopy(problem)
            next(other for other in huge["devices"] if other["name"] == device["name"])["memory_bytes"] = 10**6
            assert best_decision(huge) is None
