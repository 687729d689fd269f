"""Whole runs over real processes: any cut gives the same bits, results are complete, and bad input is refused before anything starts."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import serve_cases
from serve_cases import Case, requests

from llmpq import artifacts
from llmpq.errors import ArtifactError, LlmpqError, ServeError
from llmpq.model.stage import StageModel
from llmpq.serve.job import Settings, speed_claimed

LENGTHS, LIMITS = [5, 9, 17, 12, 3, 30, 21], [4, 9, 9, 3, 1, 9, 6]


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Case:
    case = Case(tmp_path_factory.mktemp("one-stage"), tiny_checkpoint, requests(LENGTHS, LIMITS), [6], (2, 3))
    case.serve()
    return case


@pytest.mark.parametrize("cut", [[1, 5], [4, 2], [2, 1, 3]])
def test_any_cut_is_bit_identical_at_the_same_micro_batches(one_stage: Case, tmp_path: Path, tiny_checkpoint: Path, cut: list[int]) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests(LENGTHS, LIMITS), cut, (2, 3))
    document = case.serve()
    assert (tmp_path / "requests.jsonl").read_bytes() == (one_stage.directory / "requests.jsonl").read_bytes()
    assert document["weights_sha256"] == artifacts.read(one_stage.directory / "serve.json", "serve")["weights_sha256"]
    assert serve_cases.stage_processes() == []


def test_other_micro_batches_and_waves_over_two_stages_give_the_same_tokens(one_stage: Case, tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests(LENGTHS, LIMITS), [3, 3], (1, 2), slots=4)
    case.serve()
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in one_stage.results()]


def test_every_option_in_one_plan_is_bit_identical_in_any_cut(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ["16", "8", "w8a8", "w8a8-outlier", "4", "3"]
    folder = serve_cases.quantised_layers(tiny_checkpoint, tmp_path / "quantised", options)
    results, digests = [], set()
    for name, cut in (("one", [6]), ("two", [4, 2]), ("three", [1, 2, 3])):
        rows = requests(LENGTHS, LIMITS)
        case = Case(tmp_path / name, tiny_checkpoint, rows, cut, (2, 3), options=options, quantised=folder, ends="16")
        digests.add(case.serve()["weights_sha256"])
        results.append((case.directory / "requests.jsonl").read_bytes())
    assert results[0] == results[1] == results[2]
    whole = StageModel.load(tiny_checkpoint, folder, first_layer=0, options=options, embedding="16", head="16")
    assert digests == {whole.weights_digest}


def test_results_are_in_request_order_and_the_journal_is_gone(one_stage: Case) -> None:
    rows = one_stage.results()
    assert [row["id"] for row in rows] == [f"r{index}" for index in range(7)]
    assert [row["prompt_tokens"] for row in rows] == LENGTHS
    assert [len(row["tokens"]) for row in rows] == LIMITS
    assert all(len(row["margins"]) == limit and row["min_margin"] >= 0 for row, limit in zip(rows, LIMITS, strict=True))
    assert not (one_stage.directory / "journal").exists()


def test_serve_json_puts_measured_beside_predicted(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([8] * 6, 7), [2, 4], (2, 3))
    document = case.serve()
    measured = document["throughput"]["measured"]
    assert document["new_tokens"] == 42
    assert measured["tokens_per_s"] == pytest.approx(42 / measured["total_s"])
    assert measured["total_s"] == pytest.approx(measured["prefill_s"] + measured["decode_s"])
    assert document["throughput"]["predicted"] == {"tokens_per_s": 1.0, "prefill_s": 1.0, "decode_s": 1.0, "total_s": 2.0, "by": "formula"}
    for stage, layers in zip(document["stages"], (2, 4), strict=True):
        assert (stage["prefill"]["calls"], stage["prefill"]["micro_batch"]) == (2, 2)  # chunks of 2, 1, 2 and 1 rows
        assert (stage["decode"]["calls"], stage["decode"]["micro_batch"]) == (12, 3)
        assert stage["bytes"]["measured"]["kv"] == stage["bytes"]["predicted"]["kv"] == layers * 2 * 6 * 15 * 2 * 16 * 4
        assert 0 < stage["cpu_s"] <= stage["process_cpu_s"]
        assert stage["busy_s"] <= measured["total_s"]
    assert document["stages"][0]["bytes"]["measured"]["embedding"] > 0 == document["stages"][1]["bytes"]["measured"]["embedding"]


def test_the_timeline_is_a_chrome_trace_of_every_call(one_stage: Case) -> None:
    trace = json.loads((one_stage.directory / "timeline.json").read_text())
    calls = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["cat"] for event in calls} == {"prefill", "decode"}
    assert all(event["ts"] >= 0 and event["dur"] > 0 and event["pid"] == 0 for event in calls)
    ends = [event["ts"] + event["dur"] for event in calls]
    assert all(later["ts"] >= end - 0.2 for end, later in zip(ends, calls[1:], strict=False))  # one stage does one thing at a time
    assert trace["traceEvents"][0]["args"]["name"] == "stage 0: d0, layers 0–5"


def test_a_slowed_device_takes_its_factor_longer(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([20] * 4, 6), [6], (2, 2))
    case.cluster = serve_cases.cluster(1, slowdown=20.0)
    stage = case.serve()["stages"][0]
    assert stage["busy_s"] >= 20 * stage["cpu_s"]


def test_busy_waiting_and_sending_seconds_are_parts_of_the_measured_time(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The warm-up runs as many calls as the batch here, and the slow first stage keeps the second one waiting."""
    case = Case(tmp_path, tiny_checkpoint, requests([30] * 3, 2), [5, 1], (3, 3))
    case.cluster = serve_cases.cluster(2, slowdown=60.0)
    document = case.serve()
    total = document["throughput"]["measured"]["total_s"]
    for stage in document["stages"]:
        assert stage["busy_s"] + stage["wait_s"] + stage["send_s"] <= total
        assert stage["wait_s"] > 0
        assert stage["send_s"] > 0


def test_a_link_delay_is_kept(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 6), [3, 3], (2, 2))
    case.cluster["link"] = {"delay_ms": 30}
    measured = case.serve()["throughput"]["measured"]
    assert measured["prefill_s"] >= 0.06  # there and back
    assert measured["decode_s"] >= 5 * 0.06


def test_a_given_port_in_use_is_one_clear_error(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [3, 3], (1, 1), port=port)
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use; choose another backend.port"):
            case.serve()
    assert case.serve()["new_tokens"] == 2  # free again


def test_a_budget_below_the_plan_is_refused_before_a_process_starts(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [3, 3], (1, 1))
    case.cluster["types"]["cpu"]["memory_mib"] = 1
    total = case.body["stages"][0]["bytes"]["total"]
    with pytest.raises(ServeError, match=rf"device d0: the plan puts {total:,} bytes there, {total - (1 << 20):,} bytes are missing"):
        case.serve()
    assert not (tmp_path / "logs").exists()


def test_a_stage_that_would_exceed_its_budget_refuses_to_allocate(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The plan's own figures are too small for what the weights really take."""
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [3, 3], (1, 1))
    for stage in case.body["stages"]:
        stage["bytes"] |= {"workspace": 0, "total": 1, "budget": 300_000}
    with pytest.raises(ServeError, match=r"device d\d: 147,968 bytes of weights do not fit, \d[\d,]* bytes are missing \(budget 300,000"):
        case.serve()
    assert serve_cases.stage_processes() == []
    assert not (tmp_path / "requests.jsonl").exists()


def test_buffers_between_the_stages_are_entered_and_are_part_of_the_plans_workspace(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([60] * 16, 2), [3, 3], (16, 16))
    held = case.serve()["stages"][0]["bytes"]["measured"]
    buffers = 2 * (128 + 128 + 4 * 16 * 60 * 64) + 16 * (128 + 128 + 4 * 16)  # two of hidden states, one of tokens for each slot
    assert held["transport"] == buffers
    taken = sum(held[kind] for kind in ("weights", "embedding", "head", "kv"))
    case.body["stages"][0]["bytes"] |= {"workspace": buffers, "total": taken + buffers, "budget": taken + buffers}
    case.serve()
    case.body["stages"][0]["bytes"] |= {"workspace": 0, "total": 1, "budget": taken + buffers - 1}
    with pytest.raises(ServeError, match=rf"device d0: {buffers:,} bytes of transport do not fit, 1 bytes are missing"):
        case.serve()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["stages"][1].update(first_layer=2), r"stage 1 \(d1\) begins at layer 2 with 3 layers; layer 3 should come next"),
        (lambda plan: plan["stages"].pop(), "the embedding belongs to the first stage and the head to the last"),
        (lambda plan: plan["stages"][1]["options"].pop(), "the plan has 5 layers, the model 6; plan again"),
        (lambda plan: plan["micro_batch"].update(decode_count=2), "2 decode micro-batches of at most 1 do not make up 1 slots"),
        (lambda plan: plan["stages"][1].update(device="d9"), "stage 1 is planned for device d9, the cluster has d0, d1"),
        (lambda plan: plan["stages"][1].update(options=["5"] * 3), "unknown weight option '5'"),
        (lambda plan: plan["stages"][1].update(options=["16/kv4"] * 3), "option '16/kv4' keeps its cache at '4'; a cache may have 16, 8"),
        (
            lambda plan: plan["stages"][1].update(head_option="4"),
            "the plan keeps the head at option 4, this runtime knows 32, 16, bf16, 8, w8a8",
        ),
        (
            lambda plan: plan["stages"][0].update(embedding_option="w8a8"),
            "keeps the embedding at option w8a8, this runtime knows 32, 16, 8;",
        ),
        (lambda plan: plan["stages"][0].update(embedding_option="8"), "option '8' has to be quantised"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, tiny_checkpoint: Path, change: Any, message: str) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [3, 3], (1, 1))
    change(case.body)
    with pytest.raises(LlmpqError, match=message):
        case.serve()
    assert serve_cases.stage_processes() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(id="r0"), "request 'r0' appears twice"),
        (lambda rows: rows[1]["prompt_tokens"].append(199), "request 'r1': token 199 is not in the model's vocabulary of 199"),
        (lambda rows: rows[1].update(max_new_tokens=300), "request 'r1': prompt and new tokens are 304 together, the model takes 256"),
        (lambda rows: rows[1].update(prompt_tokens=[]), r"requests\[1\].prompt_tokens"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_by_name(tmp_path: Path, tiny_checkpoint: Path, change: Any, message: str) -> None:
    rows = requests([4, 4], 2)
    change(rows)
    with pytest.raises(LlmpqError, match=message):
        Case(tmp_path, tiny_checkpoint, rows, [6], (1, 1)).serve()


def test_a_truncated_plan_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [6], (1, 1))
    path = serve_cases.write_plan(tmp_path / "plan.json", case.body)
    path.write_text(path.read_text()[:-200])
    with pytest.raises(ArtifactError, match=r"plan.json: not a complete JSON file"):
        serve_cases.serve(path, None, case.workload, case.cluster, tiny_checkpoint, None, tmp_path, case.settings)


def test_a_corrupt_tokenizer_is_refused_before_a_stage_starts(tmp_path: Path, tiny_checkpoint: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(LlmpqError, match=r"tokenizer.json: not a tokenizer \(.*\); prepare the model again"):
        Case(tmp_path, checkpoint, requests([4], 2), [6], (1, 1)).serve()
    assert not (tmp_path / "logs").exists()


def test_another_problems_plan_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from llmpq.serve.batch import check_problem

    with pytest.raises(ServeError, match="was made for another problem"):
        check_problem({"problem_sha256": "0" * 64}, {"name": "other"}, Path("plan.json"), Path("problem.json"))


def test_a_corrupt_layer_file_fails_with_its_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ["16"] * serve_cases.LAYERS
    folder = serve_cases.quantised_layers(tiny_checkpoint, tmp_path / "quantised", options)
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [3, 3], (1, 1), options=options, quantised=folder)
    good = case.serve()
    victim = folder / "layer-004.16.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 0xFF
    victim.write_bytes(data)
    with pytest.raises(ServeError, match=r"stage 1 \(d1, layers 3–5\): .*layer-004.16.safetensors: truncated or damaged"):
        case.serve()
    assert serve_cases.stage_processes() == []
    assert artifacts.read(tmp_path / "serve.json", "serve") == good  # the results of the run before are whole


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4], 2), [6], (1, 1))
    (tmp_path / "journal").write_text("in the way")
    with pytest.raises(ServeError, match=r"journal: cannot be written: File exists"):
        case.serve()


def test_stages_listen_on_the_loopback_only_and_stay_on_their_cores(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Looked at from outside while the stages serve: all their sockets, and all their threads (the transport's too)."""
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 20), [3, 3], (1, 1))
    case.cluster = serve_cases.cluster(2, slowdown=60.0)
    addresses: set[str] = set()
    cores: dict[int, set[int]] = {0: set(), 1: set()}
    threads: dict[int, int] = {0: 0, 1: 0}

    def look(line: str) -> None:
        if "tokens/s" not in line and "prefill" not in line:
            return
        for rank, process in enumerate(serve_cases.stage_processes()):
            addresses.update(row.laddr.ip.removeprefix("::ffff:") for row in process.net_connections("inet"))
            threads[rank] = max(threads[rank], process.num_threads())
            for thread in process.threads():
                cores[rank] |= os.sched_getaffinity(thread.id)

    plan = serve_cases.write_plan(tmp_path / "plan.json", case.body)
    serve_cases.serve(plan, None, case.workload, case.cluster, tiny_checkpoint, None, tmp_path, case.settings, say=look)
    assert addresses == {"127.0.0.1"}
    assert cores == {rank: set(member["cores"]) for rank, member in enumerate(case.cluster["members"])}
    assert min(threads.values()) > 1  # in each stage the transport's were among those looked at


def test_more_micro_batches_under_way_than_buffers_do_not_block(tmp_path: Path, tiny_checkpoint: Path) -> None:
    rows = requests([4] * 24, 5)
    case = Case(tmp_path, tiny_checkpoint, rows, [2, 2, 2], (1, 1), timeout_s=20)
    assert case.serve()["new_tokens"] == 120
    alone = Case(tmp_path / "alone", tiny_checkpoint, rows, [6], (24, 24))
    alone.serve()
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in alone.results()]


def test_many_scattered_rows_fit_in_a_message(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Prompts as long as the longest, more than four a call: lengths and slots then fill more than one alignment of the message."""
    rows = requests([16] * 24, 3)
    case = Case(tmp_path, tiny_checkpoint, rows, [3, 3], (12, 12), slots=12, schedule="continuous")
    case.serve()
    alone = Case(tmp_path / "alone", tiny_checkpoint, rows, [6], (12, 12), slots=12)
    alone.serve()
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in alone.results()]


@pytest.mark.parametrize(("cut", "sizes"), [([6], (2, 3)), ([2, 4], (1, 2)), ([1, 3, 2], (2, 1))])
def test_the_continuous_schedule_gives_every_request_its_own_tokens(
    tmp_path: Path, tiny_checkpoint: Path, cut: list[int], sizes: tuple[int, int]
) -> None:
    """Eleven unlike requests through five slots, on one stage and over real links, against each of them alone."""
    rows = requests([5, 9, 17, 12, 3, 30, 21, 8, 1, 26, 4], [4, 12, 2, 3, 1, 7, 12, 2, 9, 5, 6])
    case = Case(tmp_path, tiny_checkpoint, rows, cut, sizes, slots=5, schedule="continuous")
    document = case.serve()
    assert document["schedule"] == "continuous"
    assert document["new_tokens"] == sum(row["max_new_tokens"] for row in rows)
    assert set(document["throughput"]["predicted"].values()) == {None}  # the plan priced the barrier
    alone = Case(tmp_path / "alone", tiny_checkpoint, rows, [6], (1, 1), slots=1)
    alone.serve()
    assert [row["tokens"] for row in case.results()] == [row["tokens"] for row in alone.results()]
    calls = [call for call in json.loads((tmp_path / "timeline.json").read_text())["traceEvents"] if call["ph"] == "X" and not call["pid"]]
    phases = [call["cat"] for call in sorted(calls, key=lambda call: call["ts"])]
    assert "decode" in phases[: len(phases) - phases[::-1].index("prefill")]  # prompts were read between decode calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "random"}, "serve.schedule is 'random'; this runtime knows barrier, continuous"),
        ({"slots": 0}, "workload.slots is 0"),
        ({"timeout_s": 0}, "must be positive"),
        ({"port": 70000}, "backend.port is 70000"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeError, match=message):
        Settings(**{"slots": 1, **settings})


@pytest.mark.parametrize(("stages", "slowdown"), [(1, 1.0), (2, 1.0), (2, 2.5)])
def test_speed_is_claimed_while_every_stage_has_a_core(stages: int, slowdown: float) -> None:
    assert speed_claimed([{"cores": [rank], "slowdown": slowdown} for rank in range(stages)], cores=2)


@pytest.mark.parametrize(
    "jobs",
    [
        [{"cores": [0], "slowdown": 1.0}, {"cores": [1], "slowdown": 2.5}, {"cores": [1], "slowdown": 2.5}],  # more stages than cores
        [{"cores": [0], "slowdown": 2.0}, {"cores": [0], "slowdown": 2.0}],  # one core asked for as a whole by two
    ],
)
def test_speed_is_not_claimed_beyond_the_cores(jobs: list[dict[str, Any]]) -> None:
    assert not speed_claimed(jobs, cores=2)


def test_stages_wait_for_nothing_but_each_other(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Replaying the measured calls under the barrier schedule's dependencies alone gives the measured times, within what messages cost."""
    case = Case(tmp_path, tiny_checkpoint, requests([8] * 6, 8), [2, 4], (1, 2))
    case.cluster = serve_cases.cluster(2, slowdown=60.0)
    measured = case.serve()["throughput"]["measured"]
    calls = [event for event in json.loads((tmp_path / "timeline.json").read_text())["traceEvents"] if event["ph"] == "X"]
    seconds = [
        [(event["cat"], event["args"]["micro_batch"], event["dur"] / 1e6) for event in calls if event["pid"] == rank] for rank in (0, 1)
    ]
    assert [call[:2] for call in seconds[0]] == [call[:2] for call in seconds[1]]
    free, prefilled, returned = [0.0, 0.0], 0.0, dict.fromkeys(range(3), 0.0)
    for (phase, batch, first), (_, _, second) in zip(*seconds, strict=True):
        ready = 0.0 if phase == "prefill" else max(prefilled, returned[batch])
        free[0] = max(free[0], ready) + first
        free[1] = max(free[1], free[0]) + second
        returned[batch] = free[1]
        prefilled = free[1] if phase == "prefill" else prefilled
    assert len(calls) == 2 * (6 + 3 * 7)
    assert measured["prefill_s"] == pytest.approx(prefilled, rel=0.08)
    assert measured["total_s"] == pytest.approx(max(free), rel=0.08)
    assert measured["total_s"] > max(free) * 0.999
