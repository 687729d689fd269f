"""What no change of a problem may do to its best plan. Every objective is proven at gap 0 and priced again by ``check``.

Hypothesis draws the problems (``random_problem``) and the changes; the campaign (slow) draws more of them.
"""

import copy
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_instances import ENDS, PHASES, random_problem

from llmpq.errors import InfeasibleError
from llmpq.plan.check import check
from llmpq.plan.planner import plan

Document = dict[str, Any]
Change = Callable[[Document, random.Random], Document | None]
SEEDS = st.integers(min_value=0, max_value=100_000)
EXAMPLES, CAMPAIGN = 15, 30
# A best plan is found to the solver's tolerance of 1e-7 where two plans are that close.
SOLVER = 1e-7


def objective_of(problem: Document) -> float:
    """Of the best plan, inf where there is none; ``check`` prices it again from the tables."""
    try:
        found = plan(problem, "llmpq", solver="highs", gap=0.0)
    except InfeasibleError:
        return math.inf
    assert check(problem, found) == []
    return float(found["objective_ms"])


def parts_of(device: Document) -> list[Document]:
    return [part for key in ("options", *ENDS) for part in device[key].values()]


def scale_times(holder: Document, factor: float) -> None:
    for phase in PHASES:
        holder[f"{phase}_ms"] = {size: factor * ms for size, ms in holder[f"{phase}_ms"].items()}


# --- changes that can only help (None: does not apply to this problem) ---


def more_memory(problem: Document, draw: random.Random) -> Document:
    draw.choice(problem["devices"])["memory_bytes"] += draw.randint(1, 200)
    return problem


def faster_device(problem: Document, draw: random.Random) -> Document:
    device, factor = draw.choice(problem["devices"]), draw.uniform(0.3, 0.99)
    for part in parts_of(device):
        scale_times(part, factor)
    device["overhead_ms"] = {phase: factor * ms for phase, ms in device["overhead_ms"].items()}
    return problem


def one_table_faster(problem: Document, draw: random.Random) -> Document:
    part, phase = draw.choice(parts_of(draw.choice(problem["devices"]))), draw.choice(PHASES)
    part[f"{phase}_ms"] = {size: ms * draw.uniform(0.2, 1.0) for size, ms in part[f"{phase}_ms"].items()}
    return problem


def faster_link(problem: Document, draw: random.Random) -> Document | None:
    if not problem["links"]:
        return None
    link = draw.choice(problem["links"])
    link.update(alpha_ms=link["alpha_ms"] * draw.random(), bytes_per_ms=link["bytes_per_ms"] * draw.uniform(1, 10))
    return problem


def larger_budget(problem: Document, draw: random.Random) -> Document | None:
    if "quality_budget" not in problem["objective"]:
        return None
    problem["objective"]["quality_budget"] += draw.random()
    return problem


def less_damage(problem: Document, draw: random.Random) -> Document:
    option = draw.choice(problem["options"])
    problem["omega"][option] = [value * draw.random() for value in problem["omega"][option]]
    return problem


def smaller_cache(problem: Document, draw: random.Random) -> Document:
    kv = problem["kv_bytes_per_layer"]
    less = {key: size // 2 for key, size in kv.items()} if isinstance(kv, dict) else kv // 2
    return {**problem, "kv_bytes_per_layer": less}


def tied_tables(problem: Document, draw: random.Random) -> Document:
    return {**problem, "tied_embeddings": True}


def one_more_device(problem: Document, draw: random.Random) -> Document:
    """Its links cost something, and whoever does not want it leaves it out."""
    names = [device["name"] for device in problem["devices"]]
    extra = {**copy.deepcopy(draw.choice(problem["devices"])), "name": "dogwood"}
    if draw.random() < 0.5:
        extra["uses"] = [names[0]]
    problem["devices"].insert(draw.randint(0, len(names)), extra)
    for name in names:
        for pair in ((name, "dogwood"), ("dogwood", name)):
            problem["links"].append({"from": pair[0], "to": pair[1], "alpha_ms": draw.choice([0.0, 1.0]), "bytes_per_ms": 100.0})
    return problem


def one_more_end_option(problem: Document, draw: random.Random) -> Document:
    device, end = draw.choice(problem["devices"]), draw.choice(ENDS)
    part = copy.deepcopy(draw.choice(list(device[end].values())))
    part.pop("shared_bytes", None)  # the other end has no option 3
    device[end]["3"] = {**part, "resident_bytes": part["resident_bytes"] // 2}
    problem["end_options"].append("3")
    for entry in problem["end_omega"].values():
        entry["3"] = draw.random()
    return problem


def any_micro_batches(problem: Document, draw: random.Random) -> Document:
    """Every size may be used instead of those listed."""
    return {**problem, "micro_batches": {}}


HELPFUL = [more_memory, faster_device, one_table_faster, faster_link, larger_budget, less_damage, smaller_cache, tied_tables,
           one_more_device, one_more_end_option, any_micro_batches]  # fmt: skip


# --- changes that only rename, reorder or rescale: with the factor of the objective ---


def shuffled(problem: Document, draw: random.Random) -> float:
    for key in ("devices", "options", "end_options", "links"):
        draw.shuffle(problem[key])
    for device in problem["devices"]:
        for key in ("options", *ENDS):
            device[key] = dict(draw.sample(list(device[key].items()), len(device[key])))
    return 1.0


def renamed_devices(problem: Document, draw: random.Random) -> float:
    names = {device["name"]: f"d{draw.random()}" for device in problem["devices"]}
    for device in problem["devices"]:
        device["uses"] = [names.get(part, part) for part in device.get("uses", [device["name"]])]
        device["name"] = names[device["name"]]
    for link in problem["links"]:
        link.update({"from": names[link["from"]], "to": names[link["to"]]})
    return 1.0


def other_unit_of_time(problem: Document, draw: random.Random) -> float:
    factor = draw.choice([1e-3, 0.25, 4.0, 1000.0])
    for device in problem["devices"]:
        for part in parts_of(device):
            scale_times(part, factor)
        device["overhead_ms"] = {phase: factor * ms for phase, ms in device["overhead_ms"].items()}
    for link in problem["links"]:
        link.update(alpha_ms=factor * link["alpha_ms"], bytes_per_ms=link["bytes_per_ms"] / factor)
    if "theta_ms" in problem["objective"]:
        problem["objective"]["theta_ms"] *= factor
    return factor


def other_unit_of_memory(problem: Document, draw: random.Random) -> float:
    factor = draw.choice([3, 1000, 10**7])
    for device in problem["devices"]:
        device["memory_bytes"] *= factor
        for part in parts_of(device):
            part.update({key: factor * part[key] for key in ("resident_bytes", "shared_bytes") if key in part})
        device["workspace_bytes"] = {
            phase: {size: factor * count for size, count in table.items()} for phase, table in device["workspace_bytes"].items()
        }
    kv = problem["kv_bytes_per_layer"]
    problem["kv_bytes_per_layer"] = {key: factor * size for key, size in kv.items()} if isinstance(kv, dict) else factor * kv
    return 1.0


def other_unit_of_damage(problem: Document, draw: random.Random) -> float:
    factor = draw.choice([0.125, 8.0, 64.0])
    problem["omega"] = {option: [factor * value for value in row] for option, row in problem["omega"].items()}
    problem["end_omega"] = {end: {option: factor * value for option, value in row.items()} for end, row in problem["end_omega"].items()}
    if "theta_ms" in problem["objective"]:
        problem["objective"]["theta_ms"] /= factor
    else:
        problem["objective"]["quality_budget"] *= factor
    return 1.0


INDIFFERENT = [shuffled, renamed_devices, other_unit_of_time, other_unit_of_memory, other_unit_of_damage]


def judge_helpful(change: Change, seed: int) -> None:
    problem = random_problem(seed)
    better = change(copy.deepcopy(problem), random.Random(seed))
    if better is not None:
        assert objective_of(better) <= objective_of(problem) * (1 + SOLVER)


def judge_indifferent(change: Callable[[Document, random.Random], float], seed: int) -> None:
    problem = random_problem(seed)
    other = copy.deepcopy(problem)
    factor = change(other, random.Random(seed))
    expected, found = objective_of(problem), objective_of(other)
    assert found == pytest.approx(factor * expected, rel=SOLVER) or (math.isinf(found) and math.isinf(expected))


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("change", HELPFUL, ids=lambda change: change.__name__)
def test_what_helps_never_makes_the_best_plan_worse(change: Change) -> None:
    examples(EXAMPLES)(given(seed=SEEDS)(lambda seed: judge_helpful(change, seed)))()


@pytest.mark.parametrize("change", INDIFFERENT, ids=lambda change: change.__name__)
def test_names_order_and_units_do_not_matter(change: Callable[[Document, random.Random], float]) -> None:
    examples(EXAMPLES)(given(seed=SEEDS)(lambda seed: judge_indifferent(change, seed)))()


@pytest.mark.slow
@pytest.mark.parametrize("change", HELPFUL, ids=lambda change: change.__name__)
def test_campaign_what_helps(change: Change) -> None:
    examples(CAMPAIGN)(given(seed=SEEDS)(lambda seed: judge_helpful(change, seed)))()


@pytest.mark.slow
@pytest.mark.parametrize("change", INDIFFERENT, ids=lambda change: change.__name__)
def test_campaign_names_order_and_units(change: Callable[[Document, random.Random], float]) -> None:
    examples(CAMPAIGN)(given(seed=SEEDS)(lambda seed: judge_indifferent(change, seed)))()


def test_the_properties_are_tried_on_problems_that_have_plans() -> None:
    """Otherwise "not worse" would mostly compare nothing with nothing."""
    finite = [math.isfinite(objective_of(random_problem(seed))) for seed in itertools.islice(range(0, 100_000, 2503), 30)]
    assert sum(finite) >= 18
