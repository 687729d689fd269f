"""The checker on what a plan chooses besides layers and cut: end options, cache precision, devices that share hardware, tied tables."""

import copy
from typing import Any

import pytest
from plan_instances import ENDS, GOLDEN, PHASES, rich_problem

from llmpq.errors import ArtifactError
from llmpq.plan.check import check
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.simulate.predict import with_simulation


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """Fast before slow; memory forces a choice on every one of them."""
    body = plan(rich_problem(), "llmpq", gap=0.0)
    assert len(body["stages"]) == 2
    assert check(rich_problem(), with_simulation(rich_problem(), body)) == []
    return body


def changed(plan: dict[str, Any], stage: int, **values: Any) -> dict[str, Any]:
    broken = copy.deepcopy(plan)
    broken["stages"][stage].update(values)
    return broken


MISPLACED: list[tuple[int, dict[str, Any], str]] = [
    (0, {"embedding_option": "4"}, "stage 0: embedding_option is '4', which device '{device}' does not offer"),
    (1, {"head_option": "2"}, "stage 1: head_option is '2', which device '{device}' does not offer"),
    (0, {"embedding_option": None}, "stage 0: embedding_option is None; the first stage has one, every other stage null"),
    (1, {"head_option": None}, "stage 1: head_option is None; the last stage has one, every other stage null"),
    (1, {"embedding_option": "16"}, "stage 1: embedding_option is 16; the first stage has one, every other stage null"),
    (0, {"head_option": "8"}, "stage 0: head_option is 8; the last stage has one, every other stage null"),
    (1, {"has_head": False}, "stage 1: has_head is False; the head is on the last stage and nowhere else"),
    (1, {"has_embedding": True}, "stage 1: has_embedding is True; the embedding is on the first stage and nowhere else"),
]


@pytest.mark.parametrize(("stage", "values", "message"), MISPLACED)
def test_misplaced_or_unknown_end_options(good: dict[str, Any], stage: int, values: dict[str, Any], message: str) -> None:
    faults = check(rich_problem(), changed(good, stage, **values))
    assert message.format(device=good["stages"][stage]["device"]) in faults


def test_another_end_option_has_other_bytes_and_other_damage(good: dict[str, Any]) -> None:
    last = len(good["stages"]) - 1
    other = {"16": "8", "8": "16"}[good["stages"][last]["head_option"]]
    faults = check(rich_problem(), changed(good, last, head_option=other))
    expected = {"16": 110, "8": 60}[other]
    assert f"stage {last}: bytes.head is {170 - expected}, recomputed {expected}" in faults
    assert any(fault.startswith("omega_sum is ") for fault in faults)


def test_another_cache_precision_has_other_bytes(good: dict[str, Any]) -> None:
    for j, stage in enumerate(good["stages"]):
        kept = [10 if "/kv8" in option else 20 for option in stage["options"]]
        assert stage["bytes"]["kv"] == sum(kept)
        swapped = ["4" if "/kv8" in stage["options"][0] else "4/kv8", *stage["options"][1:]]
        expected = sum(kept) - kept[0] + (30 - kept[0])
        faults = check(rich_problem(), changed(good, j, options=swapped))
        assert f"stage {j}: bytes.kv is {sum(kept)}, recomputed {expected}" in faults


def test_two_stages_on_one_piece_of_hardware(good: dict[str, Any]) -> None:
    broken = changed(changed(good, 0, device="slow"), 1, device="old")
    assert "stage 1 on 'old' and stage 0 on 'slow' both use board" in check(rich_problem(), broken)


def test_a_group_excludes_its_members() -> None:
    """A group of fast and slow beats both apart here; the members may not run beside it."""
    problem = rich_problem(objective={"theta_ms": 1.0})
    group = copy.deepcopy(problem["devices"][0])
    group.update(name="pair", uses=["fast", "slow"], memory_bytes=1400)
    for part in (*group["options"].values(), *group["embedding"].values(), *group["head"].values()):
        for phase in ("prefill_ms", "decode_ms"):
            part[phase] = {size: ms / 4 for size, ms in part[phase].items()}
    del problem["devices"][1]["uses"]
    problem["devices"][2:] = [group]
    problem["links"] = [link for link in problem["links"] if "old" not in (link["from"], link["to"])]
    orders = {stage["device"] for stage in plan(problem, "llmpq", gap=0.0)["stages"]}
    assert orders == {"pair"}
    group["memory_bytes"] = 100
    assert {stage["device"] for stage in plan(problem, "llmpq", gap=0.0)["stages"]} <= {"fast", "slow"}


def one_device(**changes: Any) -> dict[str, Any]:
    damage = {"embedding": {"8": 1.0}, "head": {"8": 1.0}}
    problem = rich_problem(links=[], objective={"theta_ms": 1000.0}, end_omega=damage, **changes)
    problem["devices"] = [{**problem["devices"][0], "memory_bytes": 1000}]
    return problem


def test_a_tied_table_on_one_stage_counts_once() -> None:
    """At 16 bit embedding and head take 100 and 110 bytes; tied, on one stage: 110 together."""
    tied, apart = plan(one_device(tied_embeddings=True), gap=0.0), plan(one_device(), gap=0.0)
    for problem, body, head in ((one_device(tied_embeddings=True), tied, 10), (one_device(), apart, 110)):
        stage = body["stages"][0]
        assert (stage["embedding_option"], stage["head_option"]) == ("16", "16")
        assert (stage["bytes"]["embedding"], stage["bytes"]["head"]) == (100, head)
        assert check(problem, body) == []
    twice = copy.deepcopy(tied)
    twice["stages"][0]["bytes"]["head"] = 110
    assert "stage 0: bytes.head is 110, recomputed 10" in check(one_device(tied_embeddings=True), twice)


def test_a_head_says_itself_what_it_shares() -> None:
    """At 8 bit the ends take 50 and 60 bytes: sharing 45, the head adds 15; at 16, where it shares nothing, all of its 110."""
    problem = one_device(tied_embeddings=True)
    problem["devices"][0]["head"]["8"]["shared_bytes"] = 45
    problem["devices"][0]["head"]["16"]["shared_bytes"] = 0
    for option, head in (("8", 15), ("16", 110)):
        alone = copy.deepcopy(problem)
        alone["devices"][0] |= {end: {option: alone["devices"][0][end][option]} for end in ("embedding", "head")}
        body = plan(alone, gap=0.0)
        assert body["stages"][0]["bytes"]["head"] == head
        assert check(alone, body) == []
        body["stages"][0]["bytes"]["head"] += 1
        assert f"stage 0: bytes.head is {head + 1}, recomputed {head}" in check(alone, body)


@pytest.mark.parametrize(
    ("part", "option", "shared", "key"),
    [
        ("head", "8", 51, r"head\.8\.shared_bytes': is 51, head and embedding can share 50 bytes"),
        ("embedding", "8", 1, r"embedding\.8\.shared_bytes': only a head has it"),
        ("options", "4", 1, r"options\.4\.shared_bytes': only a head has it"),
    ],
)
def test_what_cannot_be_shared(part: str, option: str, shared: int, key: str) -> None:
    problem = one_device()
    problem["devices"][0][part][option]["shared_bytes"] = shared
    with pytest.raises(ArtifactError, match=key):
        Problem.from_document(problem)
    problem = one_device()
    del problem["devices"][0]["embedding"]["8"]
    problem["devices"][0]["head"]["8"]["shared_bytes"] = 1
    with pytest.raises(ArtifactError, match="there is no embedding at option 8"):
        Problem.from_document(problem)


def test_tied_tables_at_two_options_or_on_two_stages_count_twice(good: dict[str, Any]) -> None:
    problem = rich_problem(tied_embeddings=True)
    body = plan(problem, "llmpq", gap=0.0)
    first, last = body["stages"][0], body["stages"][-1]
    assert first["bytes"]["embedding"] == {"16": 100, "8": 50}[first["embedding_option"]]
    assert last["bytes"]["head"] == {"16": 110, "8": 60}[last["head_option"]]
    assert body["objective_ms"] == good["objective_ms"]


@pytest.mark.parametrize(
    ("problem", "key"),
    [
        ({"end_omega": {"embedding": {"8": 0.01}}}, r"end_omega\.head\.8': missing"),
        (
            {"end_omega": {"embedding": {"8": 0.01}, "head": {"8": 0.1, "5": 1}}},
            r"end_omega\.head\.5': unknown end option; end_options are",
        ),
        ({"end_omega": {"tail": {}}}, r"key 'end_omega'"),
        ({"end_options": ["16"]}, r"key 'end_omega\.embedding\.8': unknown end option"),
        ({"end_options": ["16"], "end_omega": {}}, r"key 'devices\[0\]\.embedding\.8': unknown end option"),
        ({"kv_bytes_per_layer": 20}, r"key 'kv_bytes_per_layer': no entry for cache precision 8, which option '4/kv8' uses"),
        ({"kv_bytes_per_layer": {"8": 10}}, r"key 'kv_bytes_per_layer': no entry for cache precision 16, which option '16' uses"),
        ({"kv_bytes_per_layer": {"8": -10}}, r"key 'kv_bytes_per_layer\.8': -10 is less than the minimum"),
        ({"kv_bytes_per_layer": "20"}, r"key 'kv_bytes_per_layer': '20' is not of type 'integer'"),
        ({"options": ["16", "4", "4/cache8"]}, r"key 'options\[2\]': '4/cache8' does not match"),
        ({"tied_embeddings": "yes"}, r"key 'tied_embeddings': 'yes' is not of type 'boolean'"),
    ],
)
def test_what_a_problem_may_not_say(problem: dict[str, Any], key: str) -> None:
    with pytest.raises(ArtifactError, match=key):
        Problem.from_document(rich_problem(**problem))


def test_a_missing_link_matters_only_where_both_ends_can_be_in_one_order() -> None:
    problem = rich_problem()
    problem["links"] = [link for link in problem["links"] if {link["from"], link["to"]} != {"slow", "old"}]
    assert Problem.from_document(problem).excludes(1, 2)
    problem["links"] = [link for link in problem["links"] if {link["from"], link["to"]} != {"fast", "old"}]
    with pytest.raises(ArtifactError, match="no link fast → old; every ordered pair of devices that can be in one order"):
        Problem.from_document(problem)


def five_slots() -> dict[str, Any]:
    """The golden problem for five requests; every table goes on in proportion."""
    problem = copy.deepcopy(GOLDEN)
    problem["workload"].update(requests=5, slots=5)
    for device in problem["devices"]:
        tables = [part[f"{phase}_ms"] for key in ("options", *ENDS) for part in device[key].values() for phase in PHASES]
        for table in (*tables, *device["workspace_bytes"].values()):
            table.update({str(size): size * table["1"] for size in range(3, 6)})
    return problem


def test_a_size_that_no_micro_batch_has() -> None:
    """Five requests in micro-batches of at most 4 are 3 and 2: the plan must say 3."""
    body = plan(five_slots(), "uniform")
    body["micro_batch"].update(prefill=3, decode=4, prefill_count=2, decode_count=2)
    assert check(five_slots(), body) == ["micro_batch.decode is 4, the largest micro-batch has 3 requests"]
