"""``llmpq serve`` on files of JSON lines: every line is answered once, and a sampled request gets its own tokens wherever it is served."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import serve_cases
from test_faults import Meddler

from llmpq import artifacts, cli
from llmpq.errors import ServeError
from llmpq.model.spec import ModelSpec
from llmpq.serve.batch import serve

LAYERS = 3
PROMPTS = ["Hello", "What is this?", "a", "0123456789 0123456789", "Why?", "naïve 日本", "x y z"]
SAMPLED = [
    {"id": f"r{number}", "prompt": prompt, "max_new_tokens": 6 + number, "temperature": 0.0 if number % 3 == 2 else 0.9, "top_p": 0.8}
    for number, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, write_llama: Callable[..., Path]) -> Path:
    """A random Llama of 3 layers whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("talking")
    sizes = {"num_hidden_layers": LAYERS, "vocab_size": serve_cases.BYTE_VOCAB, "eos_token_id": 7, "tie_word_embeddings": False}
    return serve_cases.byte_tokenizer(write_llama(folder, **sizes))


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def planned(directory: Path, checkpoint: Path, cut: Sequence[int], sizes: tuple[int, int], slots: int, capacity: int = 64) -> Path:
    spec = ModelSpec.from_directory(checkpoint)
    directory.mkdir(exist_ok=True)
    return serve_cases.write_plan(
        directory / "plan.json", serve_cases.plan_body(spec, cut, sizes, ["32"] * LAYERS, slots, capacity=capacity)
    )


def served(
    directory: Path, checkpoint: Path, rows: Sequence[Any], cut: Sequence[int], sizes: tuple[int, int], slots: int, **more: Any
) -> Any:
    """The results, and serve.json. ``ignore_eos`` is an experiment's, for its own workload; a file's requests do not heed it."""
    plan, source = planned(directory, checkpoint, cut, sizes, slots), lines(directory / "in.jsonl", rows)
    settings = {"slots": slots, "ignore_eos": True, **more}
    document = serve(plan, None, source, None, checkpoint, None, directory / "out.jsonl", settings, say=lambda _: None)
    return read(directory / "out.jsonl"), document


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, talking: Path) -> list[dict[str, Any]]:
    """SAMPLED on one stage, one request at a time."""
    return served(tmp_path_factory.mktemp("alone"), talking, SAMPLED, [3], (1, 1), 1)[0]


def test_the_command_answers_every_line_once_and_refuses_bad_ones_alone(
    tmp_path: Path, talking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages, no configuration: devices, slots and all else are the plan's and defaults."""
    bad = [b"{", b'{"id": "bytes", "prompt": "\xff"}', {"id": "long", "prompt": "x" * 128}, {"id": "none", "prompt": ""}]
    bad += [{"id": "far", "prompt_tokens": [9999]}, {"id": "r1", "prompt": "again"}]
    rows = [SAMPLED[0], *bad[:3], *SAMPLED[1:4], *bad[3:], *SAMPLED[4:]]
    plan = planned(tmp_path, talking, [1, 2], (2, 2), slots=4)
    command = ["serve", plan, "--requests", lines(tmp_path / "in.jsonl", rows), "--checkpoint", talking, "--out", tmp_path / "out.jsonl"]
    assert cli.main(list(map(str, command))) == 0
    told = capsys.readouterr().out
    assert (
        "6 requests were refused (duplicate_id 1, empty_prompt 1, invalid_json 1, invalid_utf8 1, token_out_of_range 1, too_long 1)" in told
    )
    found = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == ["r0", None, None, "long", "r1", "r2", "r3", "none", "far", "r1", "r4", "r5", "r6"]
    assert [row["line"] for row in found if "error" in row] == [2, 3, 4, 8, 9, 10]
    assert found[3]["error"]["code"] == "too_long"
    assert "more than 128 together, which is what the model takes" in found[3]["error"]["message"]
    document = artifacts.read(tmp_path / "out.serve.json", "serve")
    assert (document["requests"], document["refused_requests"], document["sampled_requests"]) == (7, 6, 5)
    assert document["source"] == "measured"
    assert json.loads((tmp_path / "out.timeline.json").read_text())["traceEvents"]
    assert not (tmp_path / "requests.jsonl").exists()


@pytest.mark.parametrize(
    ("cut", "sizes", "slots", "schedule"),
    [([3], (3, 7), 7, "barrier"), ([1, 2], (1, 2), 4, "barrier"), ([1, 1, 1], (2, 3), 7, "barrier"), ([2, 1], (2, 2), 3, "continuous")],
)
def test_a_request_gets_its_own_tokens_in_any_cut_micro_batch_and_schedule(
    tmp_path: Path, talking: Path, alone: list[dict[str, Any]], cut: list[int], sizes: tuple[int, int], slots: int, schedule: str
) -> None:
    """Slots are used again by other requests here, greedy ones after sampled ones too."""
    rows, _ = served(tmp_path, talking, SAMPLED, cut, sizes, slots, schedule=schedule)
    assert [(row["tokens"], row["text"], row.get("seed")) for row in rows] == [
        (row["tokens"], row["text"], row.get("seed")) for row in alone
    ]
    assert ["seed" in row for row in rows] == [bool(request["temperature"]) for request in SAMPLED]


def test_the_seed_decides_and_is_the_one_recorded(tmp_path: Path, talking: Path, alone: list[dict[str, Any]]) -> None:
    named = [{**request, **({"seed": row["seed"]} if "seed" in row else {})} for request, row in zip(SAMPLED, alone, strict=True)]
    again = [{**named[0], "id": "twin"}, {**named[0], "id": "other", "seed": 1}, *named]
    twin, other, *rest = served(tmp_path, talking, again, [3], (3, 9), 9)[0]
    assert [row["tokens"] for row in rest] == [row["tokens"] for row in alone]
    assert twin["tokens"] == alone[0]["tokens"] != other["tokens"]


def test_a_run_that_was_killed_goes_on_with_the_same_draws(tmp_path: Path, talking: Path, alone: list[dict[str, Any]]) -> None:
    plan = planned(tmp_path, talking, [2, 1], (1, 2), slots=2)
    path, cluster = lines(tmp_path / "in.jsonl", [*SAMPLED, b"{"]), serve_cases.cluster(2, slowdown=40.0)
    arguments = (talking, None, tmp_path / "out.jsonl", {"slots": 2})

    def some_finished() -> bool:
        return any(journal.read_bytes().count(b"\n") > 2 for journal in (tmp_path / "out.journal").glob("*.jsonl"))

    Meddler(some_finished, 1, psutil.Process.kill).start()
    with pytest.raises(ServeError, match="requests are finished and kept in"):
        serve(plan, None, path, cluster, *arguments, say=lambda _: None)
    assert not (tmp_path / "out.jsonl").exists()
    document = serve(plan, None, path, None, *arguments, say=lambda _: None)
    assert document["resumed_requests"] >= 2
    assert document["served_requests"] + document["resumed_requests"] == len(SAMPLED)
    rows = read(tmp_path / "out.jsonl")
    assert [row["tokens"] for row in rows[:-1]] == [row["tokens"] for row in alone]
    assert rows[-1]["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("schedule", ["barrier", "continuous"])
def test_stop_strings_end_a_request_before_their_first_place(tmp_path: Path, talking: Path, schedule: str) -> None:
    rows = [{"id": str(number), "prompt": prompt, "max_new_tokens": 40} for number, prompt in enumerate(PROMPTS)]
    free, _ = served(tmp_path, talking, rows, [3], (7, 7), 7)
    stops = [next(character for character in row["text"][3:] if "!" <= character <= "~") for row in free]
    watched = [{**row, "stop": [stop, "never there"]} for row, stop in zip(rows, stops, strict=True)]
    stopped, _ = served(tmp_path / "stopped", talking, watched, [1, 2], (2, 4), 4, schedule=schedule)
    for before, after, stop in zip(free, stopped, stops, strict=True):
        assert after["finish_reason"] == "stop"
        assert after["text"] == before["text"][: before["text"].index(stop)]
        assert after["tokens"] == before["tokens"][: len(after["tokens"])]
        assert len(after["tokens"]) < 40


def test_an_end_token_ends_a_request_and_a_neighbour_goes_on(tmp_path: Path, talking: Path) -> None:
    """At a high temperature the token that ends a sequence comes up by chance."""
    rows = [{"id": number, "prompt": "a", "max_new_tokens": 100, "temperature": 50} for number in range(12)]
    found, document = served(tmp_path, talking, rows, [3], (6, 6), 6)
    ended = [row for row in found if row["finish_reason"] == "eos"]
    assert 0 < len(ended) < 12
    assert all(row["tokens"][-1] == 7 and 7 not in row["tokens"][:-1] and "<7>" not in row["text"] for row in ended)
    assert all(len(row["tokens"]) == 100 for row in found if row["finish_reason"] == "length")
    assert document["new_tokens"] == sum(len(row["tokens"]) for row in found)


def test_openai_in_is_openai_out_in_the_order_of_finishing(tmp_path: Path, talking: Path) -> None:
    def line(custom_id: str, limit: int, **more: Any) -> dict[str, Any]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"I am {custom_id}"}], "max_tokens": limit, **more}
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    rows = [line("slow", 30, temperature=1), b"{", line("quick", 2), line("bad", 2, n=3)]
    plan = planned(tmp_path, talking, [2, 1], (1, 1), slots=2)
    settings = {"slots": 2, "order": "finished"}
    document = serve(plan, None, lines(tmp_path / "in.jsonl", rows), None, talking, None, tmp_path, settings, say=lambda _: None)
    broken, bad, quick, slow = read(tmp_path / "requests.jsonl")
    assert [row["custom_id"] for row in (broken, bad, quick, slow)] == [None, "bad", "quick", "slow"]
    assert (broken["error"]["code"], bad["error"]["code"]) == ("invalid_json", "unsupported_parameter")
    assert [row["error"] for row in (quick, slow)] == [None, None]
    body = quick["response"]["body"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"] == {"prompt_tokens": 1 + len("user: I am quick\nassistant: "), "completion_tokens": 2, "total_tokens": 31}
    assert body["system_fingerprint"] == f"fp_{document['weights_sha256'][:12]}"
    assert slow["response"]["body"]["seed"] >= 0
    assert document["refusals"] == {"invalid_json": 1, "unsupported_parameter": 1}


def test_requests_longer_than_the_plans_memory_are_refused_and_the_others_served(tmp_path: Path, talking: Path) -> None:
    plan = planned(tmp_path, talking, [3], (2, 2), slots=2, capacity=40)
    body = json.loads(plan.read_text())
    held = body["stages"][0]["bytes"]
    # Room for the weights as they are, and for a cache and workspace of half as many tokens more.
    held |= {"weights": 2**20, "total": held["total"] + 2**20 - 1}
    held["budget"] = held["total"] + (held["kv"] + held["workspace"]) // 2
    plan.write_text(json.dumps(body))
    rows = [{"id": "fits", "prompt": "a", "max_new_tokens": 59}, {"id": "long", "prompt": "ab", "max_new_tokens": 59}]
    serve(plan, None, lines(tmp_path / "in.jsonl", rows), None, talking, None, tmp_path / "out.jsonl", {}, say=lambda _: None)
    fits, long = read(tmp_path / "out.jsonl")
    assert len(fits["tokens"]) == 59 or fits["finish_reason"] == "eos"
    assert "more than 60 together, which is what the plan's memory holds for each of 2 requests at a time" in long["error"]["message"]


def test_the_requests_themselves_are_never_overwritten(tmp_path: Path, talking: Path) -> None:
    plan, path = planned(tmp_path, talking, [3], (1, 1), 1), lines(tmp_path / "in.jsonl", SAMPLED)
    with pytest.raises(ServeError, match=r"in.jsonl: these are the requests themselves, .*; choose another --out"):
        serve(plan, None, path, None, talking, None, path, {})
    assert len(read(path)) == len(SAMPLED)
