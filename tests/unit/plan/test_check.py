"""The checker catches each kind of broken plan, with a message of its own, and accepts every strategy's plan."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.plan.strategies import BASELINES

PROBLEM = json.loads((Path(__file__).parents[2] / "lp" / "problem.json").read_text())
Plan = dict[str, Any]


@pytest.fixture(scope="module")
def good() -> Plan:
    """The llmpq plan of a three-device problem; it uses the fast and the slow device."""
    body = plan(PROBLEM, "llmpq", gap=0.0)
    assert [(stage["device"], len(stage["options"])) for stage in body["stages"]] == [("slow", 1), ("fast", 3)]
    assert check(PROBLEM, body) == []
    return body


@pytest.mark.parametrize("strategy", ["llmpq", *BASELINES])
@pytest.mark.parametrize("objective", [{"theta_ms": 10.0}, {"quality_budget": 0.5}], ids=["theta", "budget"])
def test_accepts_every_strategys_plan(strategy: str, objective: dict[str, float]) -> None:
    problem = {**PROBLEM, "objective": objective}
    assert check(problem, plan(problem, strategy)) == []


def breaks(message: str) -> Callable[[Callable[[Plan], None]], Callable[[Plan], None]]:
    def register(change: Callable[[Plan], None]) -> Callable[[Plan], None]:
        BROKEN.append(pytest.param(change, message, id=change.__name__))
        return change

    return register


BROKEN: list[Any] = []


@breaks("stage 0 is on device 'phantom', which the problem does not have")
def unknown_device(p: Plan) -> None:
    p["stages"][0]["device"] = "phantom"


@breaks("stage 1 is on device 'slow', which already has an earlier stage")
def device_used_twice(p: Plan) -> None:
    p["stages"][1]["device"] = "slow"


@breaks("stage 1 begins at layer 2, not at 1: every layer once, in order")
def layer_left_out(p: Plan) -> None:
    p["stages"][1]["first_layer"] = 2
    p["stages"][1]["options"].pop()


@breaks("stage 0 begins at layer 1, not at 0")
def begins_late(p: Plan) -> None:
    p["stages"][0]["first_layer"] = 1


@breaks("the stages end at layer 5, the model has 4 layers")
def layer_too_many(p: Plan) -> None:
    p["stages"][1]["options"].append("4")


@breaks("layer 0 has option '2', which device 'slow' does not offer")
def option_not_offered(p: Plan) -> None:
    p["stages"][0]["options"][0] = "2"


@breaks("stage 0: has_embedding is False; the embedding is on the first stage")
def embedding_missing(p: Plan) -> None:
    p["stages"][0]["has_embedding"] = False


@breaks("stage 0: has_head is True; the head is on the last stage")
def head_twice(p: Plan) -> None:
    p["stages"][0]["has_head"] = True


@breaks("micro-batches: prefill 3 <= decode 1 <= slots 2 does not hold")
def prefill_larger_than_decode(p: Plan) -> None:
    p["micro_batch"]["prefill"] = 3


@breaks("micro_batch.decode_count is 7, 2 slots make 2")
def wrong_count(p: Plan) -> None:
    p["micro_batch"]["decode_count"] = 7


@breaks("stage 1: bytes.weights is 1, recomputed")
def weights_misstated(p: Plan) -> None:
    p["stages"][1]["bytes"]["weights"] = 1


@breaks("stage 1: bytes.kv is 0, recomputed")
def kv_forgotten(p: Plan) -> None:
    p["stages"][1]["bytes"]["kv"] = 0


@breaks("stage 0: bytes.total is 9, recomputed")
def total_misstated(p: Plan) -> None:
    p["stages"][0]["bytes"]["total"] = 9


@breaks("stage 0: bytes.budget is 10000, device 'slow' has 520")
def budget_inflated(p: Plan) -> None:
    p["stages"][0]["bytes"]["budget"] = 10000


@breaks("stage 0 needs 780 bytes, device 'slow' has 520")
def out_of_memory(p: Plan) -> None:
    p["stages"][0]["options"] = ["16"] * 3
    p["stages"][1].update(first_layer=3, options=["16"])


@breaks("stage 0: stored_bytes is 1, recomputed")
def stored_misstated(p: Plan) -> None:
    p["stages"][0]["stored_bytes"] = 1


@breaks("stage 0: prefill_ms is 0.5, recomputed")
def prefill_time_misstated(p: Plan) -> None:
    p["stages"][0]["prefill_ms"] = 0.5


@breaks("predicted.decode_s is 0.0001, recomputed")
def decode_too_fast(p: Plan) -> None:
    p["predicted"]["decode_s"] = 0.0001


@breaks("predicted.tokens_per_s is 1000000.0, recomputed")
def speed_misstated(p: Plan) -> None:
    p["predicted"]["tokens_per_s"] = 1e6


@breaks("omega_sum is 0.25, recomputed")
def quality_misstated(p: Plan) -> None:
    p["omega_sum"] = 0.25


@breaks("quality_budget_met is False, recomputed True")
def budget_flag_wrong(p: Plan) -> None:
    p["quality_budget_met"] = False


@breaks("above the quality budget 0.5")
def budget_broken(p: Plan) -> None:
    for stage in p["stages"]:
        stage["options"] = ["4"] * len(stage["options"])


@breaks("objective_ms is 1.0, recomputed")
def objective_misstated(p: Plan) -> None:
    p["objective_ms"] = 1.0


@breaks("certificate.objective is 1.0, the plan's objective_ms")
def certificate_of_another_plan(p: Plan) -> None:
    p["certificate"]["objective"] = 1.0


@breaks("is above the plan's own objective")
def bound_above_objective(p: Plan) -> None:
    p["certificate"]["bound"] = 2 * p["objective_ms"]


@breaks("certificate.gap is 0.5, recomputed")
def gap_misstated(p: Plan) -> None:
    p["certificate"]["gap"] = 0.5


@breaks("certificate.status is optimal, but the gap")
def optimal_without_proof(p: Plan) -> None:
    p["certificate"].update(bound=p["objective_ms"] / 2, gap=0.5)


@breaks("certificate: bound None, gap 0.0 and status optimal do not go together")
def bound_missing(p: Plan) -> None:
    p["certificate"].update(bound=None, gap=0.0)


@breaks("pruned and 9 solved of")
def counts_impossible(p: Plan) -> None:
    p["certificate"]["candidates"].update(enumerated=3, solved=9)


@breaks("baseline uniform is better: 0.1 against")
def worse_than_a_baseline(p: Plan) -> None:
    p["baselines"]["uniform"] = {"objective_ms": 0.1, "omega_sum": 0.0, "quality_budget_met": True}


@breaks("problem_sha256 is not the digest of this problem")
def another_problem(p: Plan) -> None:
    p["problem_sha256"] = "0" * 64


@breaks("source is measured, the problem's computed")
def source_glorified(p: Plan) -> None:
    p["source"] = "measured"


@breaks("binding names stage 5, the plan has 2")
def binding_elsewhere(p: Plan) -> None:
    p["binding"] = [{"stage": 5, "what": "memory", "slack": 0}]


@breaks("key 'stages[0].options': [] should be non-empty")
def stage_without_layers(p: Plan) -> None:
    p["stages"][0]["options"] = []


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_catches(change: Callable[[Plan], None], message: str, good: Plan) -> None:
    broken = copy.deepcopy(good)
    change(broken)
    faults = check(PROBLEM, broken)
    assert any(message in fault for fault in faults), faults


def test_a_listed_micro_batch_must_be_used(good: Plan) -> None:
    problem = {**PROBLEM, "micro_batches": {"decode": [2]}}
    assert any("micro_batch.decode is 1, not among the sizes the problem lists" in fault for fault in check(problem, good))


def test_a_table_without_the_plans_size_is_named(good: Plan) -> None:
    problem = copy.deepcopy(PROBLEM)
    del problem["devices"][0]["head"]["16"]["decode_ms"]["1"]
    assert check(problem, good) == ["the problem's tables have no entry '1', which this plan needs"]


def test_the_first_lines_of_section_five_by_hand() -> None:
    """One device, all four layers at 4 bits, two micro-batches of one request: worked out on paper.

    Prefill per micro-batch: 4·15 + 1 (embedding) + 2 (head) + 0.25 = 63.25; both, one after the other: 126.5.
    Decode per micro-batch: 4·1 + 0.5 + 1.5 + 0.125 = 6.125; five tokens need four rounds of two: 49.
    """
    problem = copy.deepcopy(PROBLEM)
    problem.update(devices=problem["devices"][:1], links=[], options=["4"], omega={"4": [0.25] * 4}, objective={"theta_ms": 100.0})
    del problem["devices"][0]["options"]["16"]
    problem["micro_batches"] = {"prefill": [1], "decode": [1]}
    found = plan(problem, "llmpq", gap=0.0)
    assert found["predicted"]["prefill_s"] == pytest.approx(0.1265)
    assert found["predicted"]["decode_s"] == pytest.approx(0.049)
    assert found["objective_ms"] == pytest.approx(126.5 + 49 + 100)
    assert found["predicted"]["tokens_per_s"] == pytest.approx(2 * 5 / 0.1755)
    assert found["stages"][0]["bytes"] == {
        "weights": 240,
        "kv": 80,
        "embedding": 100,
        "head": 110,
        "workspace": 20,
        "total": 550,
        "budget": 820,
    }
    assert check(problem, found) == []
