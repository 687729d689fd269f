"""Where a plan runs when nothing else says it, how many requests it keeps resident, how long they may be, and where results go."""

import os
from pathlib import Path
from typing import Any

import pytest

from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.quant.bytes import kv_layer_bytes
from llmpq.serve.output import Outputs
from llmpq.serve.place import cluster_of, longest_sequence, slots_of

MIB = 1 << 20
SLOTS = 4


@pytest.fixture
def spec(tiny_llama_dir: Path) -> ModelSpec:
    return ModelSpec.from_directory(tiny_llama_dir)  # 128 tokens


def stage(spec: ModelSpec, device: str, *, layers: int, tokens: int, workspace: int, spare: int) -> dict[str, Any]:
    """A stage planned for sequences of ``tokens`` whose budget has ``spare`` bytes more than it needs."""
    kv = kv_layer_bytes(spec, SLOTS, tokens) * layers
    total = 5000 + kv + workspace
    return {
        "device": device,
        "options": ["16"] * layers,
        "bytes": {"weights": 5000, "kv": kv, "workspace": workspace, "total": total, "budget": total + spare},
    }


def test_each_stage_has_its_budget_and_an_equal_share_of_the_cores(spec: ModelSpec) -> None:
    stages = [stage(spec, f"d{number}", layers=2, tokens=30, workspace=0, spare=number * MIB) for number in range(2)]
    found = cluster_of({"stages": stages}, cores=[2, 3, 5, 7, 8])
    assert [member["cores"] for member in found["members"]] == [[2, 3], [5, 7]]
    assert [found["types"][f"d{number}"]["memory_mib"] * MIB for number in range(2)] == [entry["bytes"]["budget"] for entry in stages]
    assert {kind["source"] for kind in found["types"].values()} == {"measured"}
    assert all(member["cores"] == [] for member in cluster_of({"stages": stages}, cores=[0])["members"])  # more stages than cores: unpinned
    here = {core for member in cluster_of({"stages": stages})["members"] for core in member["cores"]}
    assert here <= os.sched_getaffinity(0)


def test_slots_are_the_problems_or_what_the_micro_batches_hold() -> None:
    plan = {"micro_batch": {"decode": 4, "decode_count": 2}}
    assert slots_of(plan, None) == 8
    assert slots_of(plan, {"workload": {"slots": 7}}) == 7


@pytest.mark.parametrize(
    ("spare", "expected"),
    [
        ((0, 0), 30),  # as long as planned, not a token more
        ((0, 10**9), 30),  # the fullest stage decides
        ((10**9, 10**9), 128),  # what the model takes
    ],
)
def test_sequences_may_be_as_long_as_the_fullest_stage_allows(spec: ModelSpec, spare: tuple[int, int], expected: int) -> None:
    stages = [stage(spec, f"d{rank}", layers=2, tokens=30, workspace=1000, spare=bytes_) for rank, bytes_ in enumerate(spare)]
    plan = {"stages": stages}
    assert longest_sequence(plan, cluster_of(plan), spec, SLOTS) == expected


def test_cache_and_workspace_grow_together_into_what_is_left(spec: ModelSpec) -> None:
    growing = kv_layer_bytes(spec, SLOTS, 30) * 3 + 6000
    plan = {"stages": [stage(spec, "d0", layers=3, tokens=30, workspace=6000, spare=growing)]}
    assert longest_sequence(plan, cluster_of(plan), spec, SLOTS) == 60
    assert longest_sequence(plan, cluster_of(plan), spec, 2 * SLOTS) == 30  # twice as many at a time
    small = cluster_of(plan)
    small["types"]["d0"]["memory_mib"] -= growing / 2 / MIB  # the device has less than the plan counted on
    assert longest_sequence(plan, small, spec, SLOTS) == 45


def test_results_go_to_a_file_and_the_rest_beside_it_or_into_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    file = Outputs.at(tmp_path / "a.b.jsonl", source)
    assert [path.name for path in (file.results, file.serve, file.timeline, file.simulated, file.journal, file.logs)] == [
        *("a.b.jsonl", "a.b.serve.json", "a.b.timeline.json", "a.b.simulated.json", "a.b.journal", "a.b.logs")
    ]
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("folder", "folder.jsonl"):
        folder = Outputs.at(tmp_path / name, source)
        assert (folder.results, folder.journal) == (tmp_path / name / "requests.jsonl", tmp_path / name / "journal")


def test_results_that_would_overwrite_the_requests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "requests.jsonl")
    for out in (tmp_path, tmp_path / "requests.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(ServeError, match=r"jsonl: these are the requests themselves, .*; choose another --out"):
            Outputs.at(out, tmp_path / "requests.jsonl")
