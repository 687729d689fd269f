"""problem.json from hand-made artifacts: every number worked out by hand, accepted by the planner's own reader, and bad inputs named."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from llmpq import artifacts
from llmpq.cost.problem import build_problem, micro_batch_sizes
from llmpq.cost.tables import offered_options
from llmpq.errors import ArtifactError, LlmpqError
from llmpq.model.spec import ModelSpec
from llmpq.plan.problem import Problem
from llmpq.quant.bytes import kv_layer_bytes, resident_end_bytes, resident_layer_bytes, stored_end_bytes, stored_layer_bytes

SPEC = ModelSpec(
    family="llama",
    layers=3,
    hidden=64,
    ffn=128,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=96,
    max_positions=128,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated=True,
    positions="learned",
)
OPTIONS = ["16", "w8a8", "4"]


def fit(part: str, phase: str, option: str, **terms: float) -> dict[str, Any]:
    named = {{"vs": "v*s", "vt": "v*t", "one": "1", "t": "t"}[key]: value for key, value in terms.items()}
    return {"part": part, "phase": phase, "option": option, "form": "terms", "terms": named, "heldout_mape": 0.01, "points": 9}


def cost(device: str = "fast", slowdown: float = 1.0) -> dict[str, Any]:
    fits = [fit("layer", "prefill", option, vs=0.01 * k, one=0.5) for k, option in enumerate(OPTIONS, 1)]
    fits += [fit("layer", "decode", option, vt=0.001 * k, one=1.0) for k, option in enumerate(OPTIONS, 1)]
    for part in ("embedding", "head"):
        fits += [fit(part, "prefill", "16", vs=0.1), fit(part, "decode", "16", one=0.2)]
    fits += [fit("overhead", "prefill", "-", one=0.05), fit("overhead", "decode", "-", one=0.07)]
    shapes = [("prefill", 1, 8, 1000), ("prefill", 4, 8, 4000), ("decode", 1, 16, 100), ("decode", 4, 16, 300)]
    workspace = [
        {"part": "layer", "phase": phase, "micro_batch": v, "tokens": x if phase == "prefill" else 1, "context": x, "bytes": size}
        for phase, v, x, size in shapes
    ]
    body = {"model": "tiny", "device": device, "slowdown": slowdown, "fits": fits, "workspace": workspace}
    document = {"schema": "llmpq.cost", "version": 1, "provenance": {}, **body}
    artifacts.check(document, "cost")
    return document


def link(sender: str, receiver: str) -> list[dict[str, Any]]:
    times = {1: 0.1 + 1 / 1e6, 1_000_000: 0.1 + 1.0}
    return [
        {"from": sender, "to": receiver, "bytes": size, "p10_ms": ms, "p50_ms": ms, "p90_ms": ms, "repeats": 3}
        for size, ms in times.items()
    ]


def inputs() -> dict[str, Any]:
    return {
        "name": "toy",
        "model": {"name": "tiny", "spec": SPEC.to_dict()},
        "cluster": {
            "name": "pair",
            "members": [{"name": "a", "device": "fast", "cores": [0]}, {"name": "b", "device": "slow", "cores": [1]}],
            "types": {
                "fast": {"source": "measured", "memory_mib": 4, "slowdown": 1.0},
                "slow": {"source": "emulated", "memory_mib": 2, "slowdown": 2.0, "reserve_mib": 0.5},
            },
        },
        "workload": {"requests": 8, "slots": 4, "prompt_tokens": 8, "new_tokens": 5},
        "planner": {"objective": {"theta_ms": None, "quality_budget": 0.5}, "micro_batches": {"prefill": None, "decode": None}},
        "options": list(OPTIONS),
        "costs": {"fast": cost(), "slow": cost("slow", 2.0)},
        "links": {"cluster": "pair", "hand_off": {"p50_ms": 0.3}, "rows": link("a", "b") + link("b", "a")},
        "indicator": {
            "model": "tiny",
            "rows": [
                {"layer": layer, "option": option, "omega": w * (layer + 1) / 6}
                for layer in range(3)
                for option, w in (("16", 0.0), ("w8a8", 0.2), ("4", 1.0))
            ],
            "ends": [{"end": "embedding", "option": "8", "omega": 0.001}, {"end": "head", "option": "8", "omega": 0.02}],
        },
    }


def test_caches_of_8_bits_are_options_of_their_own() -> None:
    given = inputs()
    given["kv_options"] = ["16", "8"]
    for name, slowdown in (("fast", 1.0), ("slow", 2.0)):
        document = cost(name, slowdown)
        extra = [{**row, "option": "4/kv8"} for row in document["fits"] if row["option"] == "4"]
        given["costs"][name] = {**document, "fits": document["fits"] + extra}
    given["indicator"]["rows"] += [{"layer": layer, "option": "4/kv8", "omega": 0.5} for layer in range(3)]
    body = build_problem(**given)
    assert body["options"] == [*OPTIONS, "4/kv8"]
    assert body["kv_bytes_per_layer"] == {kv: kv_layer_bytes(SPEC, 4, 13, kv) for kv in ("16", "8")}
    assert kv_layer_bytes(SPEC, 4, 13, "8") == 2 * 4 * 13 * 2 * (16 + 4)
    assert "a: option 16/kv8 is not offered: it was not profiled on fast" in body["description"]
    table = body["devices"][0]["options"]
    assert table["4/kv8"] == table["4"]
    assert Problem.from_document(body).kv_bytes["4/kv8"] == kv_layer_bytes(SPEC, 4, 13, "8")
    given["indicator"]["rows"].pop()
    with pytest.raises(ArtifactError, match="no omega for layer 2, option '4/kv8'"):
        build_problem(**given)


def test_every_number_is_the_one_worked_out_by_hand() -> None:
    body = build_problem(**inputs())
    problem = Problem.from_document(body)  # the planner's own reader, with every table it will need
    assert problem.slots == 4
    assert body["source"] == "emulated"
    assert body["objective"] == {"quality_budget": 0.5}
    assert body["kv_bytes_per_layer"] == kv_layer_bytes(SPEC, 4, 13) == 2 * 4 * 13 * 2 * 16 * 2
    assert body["activation_bytes_per_token"] == 64 * 4
    first, second = body["devices"]
    assert (first["name"], first["type"], first["memory_bytes"]) == ("a", "fast", 4 * 2**20)
    assert second["memory_bytes"] == int(1.5 * 2**20)
    table = first["options"]["w8a8"]
    assert table["resident_bytes"] == resident_layer_bytes(SPEC, "w8a8")
    assert table["stored_bytes"] == stored_layer_bytes(SPEC, "w8a8")
    assert table["prefill_ms"] == pytest.approx({"1": 0.5 + 0.16, "2": 0.5 + 0.32, "4": 0.5 + 0.64})
    # Five new tokens: the first from prefill, then four steps that attend 9, 10, 11 and 12 tokens, 10.5 on average.
    assert table["decode_ms"] == pytest.approx({"1": 1 + 0.002 * 10.5, "2": 1 + 0.004 * 10.5, "4": 1 + 0.008 * 10.5})
    assert first["embedding"]["16"]["resident_bytes"] == resident_end_bytes(SPEC, "embedding", "16")
    assert first["head"]["16"]["prefill_ms"]["4"] == pytest.approx(3.2)
    assert first["overhead_ms"] == pytest.approx({"prefill": 0.05 + 0.3, "decode": 0.07 + 0.3})
    # Two between the measured sizes, plus two messages of (8 tokens × 64 × 4 + 8) bytes a row and a header each.
    assert first["workspace_bytes"]["prefill"]["2"] == 2000 + 2 * (2 * (8 * 256 + 8) + 256)
    assert first["workspace_bytes"]["decode"]["4"] == 300 + 2 * (4 * (256 + 8) + 256)
    assert body["omega"]["4"] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    found = body["links"][0]
    assert (found["from"], found["to"]) == ("a", "b")
    assert found["alpha_ms"] == pytest.approx(0.1, rel=1e-4)
    assert found["bytes_per_ms"] == pytest.approx(1e6, rel=1e-4)


def test_ends_have_their_own_options_bytes_and_damage() -> None:
    given = inputs()
    given["end_options"] = ["16", "8"]
    for tied in (True, False):
        spec = replace(SPEC, tied_embeddings=tied)
        given["model"] = {"name": "tiny", "spec": spec.to_dict()}
        for document in given["costs"].values():
            document["fits"] += [fit(part, "prefill", "8", vs=0.2) for part in ("embedding", "head")]
            document["fits"] += [fit(part, "decode", "8", one=0.4) for part in ("embedding", "head")]
        body = build_problem(**given)
        problem = Problem.from_document(body)
        assert problem.end_options == ("16", "8")
        assert body["end_omega"] == {"embedding": {"16": 0.0, "8": 0.001}, "head": {"16": 0.0, "8": 0.02}}
        table = body["devices"][0]["head"]["8"]
        assert table["resident_bytes"] == resident_end_bytes(spec, "head", "8") == 96 * (64 + 2) + 64 * 4
        assert table["stored_bytes"] == stored_end_bytes(spec, "head", "8") == 96 * (64 + 2) + 64 * 4
        assert table.get("shared_bytes") == (96 * (64 + 2) if tied else None)
        assert table["decode_ms"]["2"] == pytest.approx(0.4)
        assert "shared_bytes" not in body["devices"][0]["head"]["16"]
        assert body["devices"][0]["embedding"]["8"]["resident_bytes"] == 96 * (64 + 2) + 128 * 64 * 4  # and learned positions
    given["end_options"] = ["16", "8", "w8a8"]
    with pytest.raises(ArtifactError, match="no fit of head in prefill for option 'w8a8'"):
        build_problem(**given)
    given["end_options"], given["indicator"] = ["16", "8"], {**given["indicator"], "ends": []}
    with pytest.raises(ArtifactError, match="indicator: no omega for the embedding at option '8'; quantise the ends"):
        build_problem(**given)


def test_theta_and_listed_micro_batches_are_passed_on() -> None:
    given = inputs()
    given["planner"] = {"objective": {"theta_ms": 12, "quality_budget": None}, "micro_batches": {"prefill": [1], "decode": [2, 4]}}
    body = build_problem(**given)
    assert body["objective"] == {"theta_ms": 12.0}
    assert body["micro_batches"] == {"prefill": [1], "decode": [2, 4]}
    Problem.from_document(body)


def test_times_of_vllm_come_with_its_bytes_and_its_batching() -> None:
    given = inputs() | {"backend": "vllm", "options": ["16", "w8a8"], "schedule": "continuous"}
    given["workload"] |= {"slots": 7}
    for name, ms in (("fast", 0.25), ("slow", 0.75)):
        document = cost(name, 1.0)
        given["costs"][name] = {**document, "backend": "vllm", "fits": [*document["fits"], fit("scheduler", "decode", "-", one=ms)]}
        given["cluster"]["types"][name]["slowdown"] = 1.0
    body = build_problem(**given)
    assert (body["backend"], body["scheduler_ms"]) == ("vllm", 0.75)
    assert body["micro_batches"]["decode"] == [4, 7]  # 7 slots on two stages and on one
    assert Problem.from_document(body).scheduler_ms == 0.75
    weights = 4 * sum(rows * columns for rows, columns in SPEC.operators().values())
    table = body["devices"][0]
    assert table["options"]["16"]["resident_bytes"] == weights + 4 * 2 * SPEC.hidden
    assert table["options"]["w8a8"]["resident_bytes"] == stored_layer_bytes(SPEC, "w8a8")
    assert body["kv_bytes_per_layer"] == 2 * (7 + 1) * 128 * 2 * 16 * 4  # a block of 128 tokens a request, and one
    assert table["overhead_ms"]["decode"] == pytest.approx(0.07)  # no hand-off of the own runtime


@pytest.mark.parametrize("slots", [1, 5, 7, 12, 32, 45])
@pytest.mark.parametrize("listed", [{}, {"prefill": [3], "decode": [4, 7]}, {"decode": [1]}])
def test_all_sizes_that_the_planner_can_ask_for_are_there(slots: int, listed: dict[str, list[int]]) -> None:
    given = inputs()
    listed = {phase: [size for size in sizes if size <= slots] for phase, sizes in listed.items()}
    given["workload"] |= {"requests": slots, "slots": slots}
    given["planner"]["micro_batches"] = listed
    try:
        Problem.from_document(build_problem(**given))
    except ArtifactError as error:
        assert "no prefill size is as small" in str(error)  # an empty set of candidates is the planner's to report  # noqa: PT017


def test_balanced_sizes_and_their_chunks() -> None:
    assert micro_batch_sizes(5, {}) == [1, 2, 3, 5]
    assert micro_batch_sizes(7, {"decode": [4], "prefill": [2]}) == [1, 2, 3, 4]  # 4 + 3, cut into 2 + 2 and 2 + 1


def test_an_option_that_saves_nothing_is_not_offered_and_said_so() -> None:
    kept, notes = offered_options(["16", "8", "w8a8", "4", "3"], {"16": 100, "8": 60, "w8a8": 90, "4": 60, "3": 30})
    assert kept == ["16", "8", "w8a8", "3"]
    assert notes == ["option 4 is not offered: a layer takes 60 bytes, 8 takes 60"]


def test_an_option_without_a_profile_is_left_out_with_a_note() -> None:
    given = inputs()
    given["options"] = [*OPTIONS, "3"]
    given["costs"]["slow"]["fits"] = [row for row in given["costs"]["slow"]["fits"] if row["option"] != "w8a8"]
    body = build_problem(**given)
    assert set(body["devices"][0]["options"]) == {"16", "w8a8", "4"}
    assert set(body["devices"][1]["options"]) == {"16", "4"}
    assert "b: option w8a8 is not offered: it was not profiled on slow" in body["description"]
    assert body["options"] == OPTIONS
    Problem.from_document(body)


def _drop_link(given: dict[str, Any]) -> None:
    given["links"]["rows"] = link("a", "b")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g["costs"].update(fast=cost("other")), "key 'device' is 'other', expected 'fast'"),
        (lambda g: g["costs"]["fast"].update(model="opt"), "key 'model' is 'opt', expected 'tiny'"),
        (lambda g: g["costs"].update(slow=cost("slow", 1.0)), r"key 'slowdown' is 1.0, expected 2.0"),
        (
            lambda g: g["costs"]["fast"].update(backend="vllm"),
            "key 'backend' is 'vllm', expected 'native'; profile it again with backend nat",
        ),
        (lambda g: g.update(backend="vllm"), "key 'backend' is 'native', expected 'vllm'; profile it again with backend vllm"),
        (lambda g: g["costs"].pop("slow"), "no cost artifact for device type 'slow' of member b"),
        (lambda g: g["links"].update(cluster="trio"), "key 'cluster' is 'trio', expected 'pair'"),
        (_drop_link, "no rows from b to a"),
        (lambda g: g["indicator"].update(model="opt"), "indicator: key 'model' is 'opt'"),
        (lambda g: g["indicator"]["rows"].pop(), "no omega for layer 2, option '4'"),
        (lambda g: g["workload"].update(new_tokens=121), "129 tokens are more than the llama model allows"),
        (lambda g: g["workload"].update(slots=9), "9 slots for 8 requests"),
    ],
)
def test_inputs_that_do_not_belong_together_are_named(spoil: Any, message: str) -> None:
    given = copy.deepcopy(inputs())
    spoil(given)
    with pytest.raises(LlmpqError, match=message):
        build_problem(**given)
