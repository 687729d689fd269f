"""Files of requests: good lines are requests, every bad one is a refusal of its own that names line, key and what to do."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from serve_cases import BYTE_VOCAB, FIRST_BYTE, byte_tokenizer

from llmpq.errors import ArtifactError
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import Limits, derived_seed
from llmpq.serve.request_file import Intake, is_artifact, read_lines

LIMITS = Limits(vocab=BYTE_VOCAB, tokens=60, tokens_why="which is what the model takes", max_new_tokens=20, seed=5)
GOOD = {"id": "good", "prompt": "Hi", "max_new_tokens": 3}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return Prompts(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tokens(text: str) -> list[int]:
    """The ids of byte_tokenizer for printable ASCII and line ends."""
    from tokenizers import pre_tokenizers

    order = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [FIRST_BYTE + order.index({" ": "Ġ", "\n": "Ċ"}.get(character, character)) for character in text]


def read(tmp_path: Path, prompts: Prompts, *lines: bytes | dict[str, Any], limits: Limits = LIMITS) -> Intake:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n")
    return read_lines(path, prompts, limits, lambda _: None)


def test_a_prompt_is_text_token_ids_or_messages(tmp_path: Path, prompts: Prompts) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
    rows = [{"id": "a", "prompt": "Hi you"}, {"id": 7, "prompt_tokens": [9, 1]}, {"messages": messages, "max_new_tokens": 2}]
    found = read(tmp_path, prompts, *rows).requests
    assert [row["prompt_tokens"] for row in found] == [tokens("Hi you"), [9, 1], [1, *tokens("user: Hi you\nassistant: ")]]
    assert [row["id"] for row in found] == ["a", 7, "line-3"]
    assert [row["max_new_tokens"] for row in found] == [20, 20, 2]


def test_blank_lines_marks_and_line_ends_of_other_systems_are_no_fault(tmp_path: Path, prompts: Prompts) -> None:
    lines = (b"\xef\xbb\xbf" + json.dumps({"prompt": "a"}).encode() + b"\r", b"", b"  ", b'{"prompt": "b\\u2028"}\r')
    intake = read(tmp_path, prompts, *lines)
    assert [row["id"] for row in intake.requests] == ["line-1", "line-4"]
    assert intake.refusals == []


def test_sampling_and_stops_are_kept_and_greedy_requests_have_none(tmp_path: Path, prompts: Prompts) -> None:
    rows = [
        {"id": "a", "prompt": "x", "temperature": 0, "top_p": 0.5, "seed": 3, "stop": "END"},
        {"id": "b", "prompt": "x", "temperature": 0.5, "top_p": 0.25, "seed": -3, "stop": ["a", "b"]},
        {"id": "c", "prompt": "x", "temperature": 1},
        {"id": 1, "prompt": "x", "temperature": 1, "stop": []},
        {"id": "1", "prompt": "x", "temperature": 1, "stop": None},
    ]
    a, b, c, number, text = read(tmp_path, prompts, *rows).requests
    assert "sampling" not in a
    assert (a["stop"], b["stop"]) == (["END"], ["a", "b"])
    assert not any("stop" in row for row in (c, number, text))
    assert b["sampling"] == {"temperature": 0.5, "top_p": 0.25, "seed": -3}
    assert c["sampling"] == {"temperature": 1.0, "top_p": 1.0, "seed": derived_seed(5, "c")}
    assert len({row["sampling"]["seed"] for row in (c, number, text)} | {derived_seed(6, "c")}) == 4


def test_what_a_request_does_not_limit_is_limited_by_the_room_left(tmp_path: Path, prompts: Prompts) -> None:
    short, long, full = read(tmp_path, prompts, {"prompt": "x" * 40}, {"prompt": "x" * 55}, {"prompt": "x" * 59}).requests
    assert (short["max_new_tokens"], long["max_new_tokens"], full["max_new_tokens"]) == (20, 5, 1)


POISON = [
    (b"{not json", "invalid_json", None, "not JSON .*; write each request as one object on a line of its own"),
    (b"[1]", "invalid_json", None, "a JSON object is expected, found list"),
    (b"[" * 100_000, "invalid_json", None, "nested too deeply"),
    (b'{"id": "a", "prompt": "caf\xe9"}', "invalid_utf8", None, "byte 27 is not UTF-8; save the file as UTF-8"),
    ({"id": "a"}, "invalid_value", None, "the request has no prompt; give prompt or prompt_tokens or messages"),
    ({"id": "a", "prompt": "x", "temperature": 10**400}, "invalid_value", "temperature", "key 'temperature' is 1000"),
    ({"id": "a", "prompt": "x", "top_p": 10**400}, "invalid_value", "top_p", "key 'top_p' is 1000"),
    ({"id": "a", "prompt": "x", "y" * 10_000: 1}, "unsupported_parameter", "y" * 100 + " …", "key 'yyy"),
    ({"id": "a", "prompt": "x", "messages": []}, "invalid_value", None, "the request has prompt and messages; give prompt or"),
    ({"id": "a", "prompt": ""}, "empty_prompt", "prompt", "key 'prompt' is empty; a prompt has at least one token"),
    ({"id": "a", "prompt_tokens": []}, "empty_prompt", "prompt_tokens", "is empty"),
    ({"id": "a", "messages": []}, "empty_prompt", "messages", "is empty; a prompt has at least one message"),
    ({"id": "a", "prompt": 3}, "invalid_value", "prompt", "is 3; a text is expected"),
    (b'{"id": "a", "prompt": "\\ud83d"}', "invalid_value", "prompt", "a text is expected"),
    ({"id": "a", "prompt_tokens": [9, BYTE_VOCAB]}, "token_out_of_range", "prompt_tokens", "has token 264, .* vocabulary is 0 to 263"),
    ({"id": "a", "prompt_tokens": [-1]}, "token_out_of_range", "prompt_tokens", "has token -1"),
    ({"id": "a", "prompt_tokens": [1.5]}, "invalid_value", "prompt_tokens", "a list of token ids is expected"),
    ({"id": "a", "prompt_tokens": [True]}, "invalid_value", "prompt_tokens", "a list of token ids is expected"),
    ({"id": "a", "prompt_tokens": "12"}, "invalid_value", "prompt_tokens", "is '12'; a list of token ids"),
    ({"id": "a", "prompt": "x" * 60}, "too_long", "max_new_tokens", r"prompt \(60\) and new tokens \(1\) are more than 60 together, which"),
    ({"id": "a", "prompt": "x", "max_new_tokens": 60}, "too_long", "max_new_tokens", "what the model takes; shorten one of them"),
    ({"id": "a", "prompt": "x", "max_new_tokens": 10**40}, "too_long", "max_new_tokens", "are more than 60 together"),
    ({"id": "a", "prompt": "x", "max_new_tokens": 0}, "invalid_value", "max_new_tokens", "is 0; a whole number of at least 1"),
    ({"id": "a", "prompt": "x", "max_new_tokens": "5"}, "invalid_value", "max_new_tokens", "is '5'; a whole number"),
    ({"id": "a", "prompt": "x", "temperature": -1}, "invalid_value", "temperature", r"is -1; a number from 0 \(greedy\) to 100"),
    (b'{"id": "a", "prompt": "x", "temperature": NaN}', "invalid_value", "temperature", "is nan; a number"),
    (b'{"id": "a", "prompt": "x", "temperature": 1e999}', "invalid_value", "temperature", "is inf; a number"),
    ({"id": "a", "prompt": "x", "top_p": 0}, "invalid_value", "top_p", "is 0; a number above 0, up to 1"),
    ({"id": "a", "prompt": "x", "top_p": 1.5}, "invalid_value", "top_p", "is 1.5; a number"),
    ({"id": "a", "prompt": "x", "seed": 2**63}, "invalid_value", "seed", "a whole number of up to 64 bits"),
    ({"id": "a", "prompt": "x", "seed": "1"}, "invalid_value", "seed", "is '1'; a whole number"),
    ({"id": "a", "prompt": "x", "stop": [""]}, "invalid_value", "stop", r"is \[''\]; a text that is not empty"),
    ({"id": "a", "prompt": "x", "stop": ["s"] * 17}, "invalid_value", "stop", "is an object of 17 entries; a text"),
    ({"id": "a", "prompt": "x", "temprature": 1}, "unsupported_parameter", "temprature", "key 'temprature' is unknown; known: id, prompt"),
    ({"id": "a", "messages": [{"role": "user"}]}, "invalid_value", "messages", "has None as content of message 0; a text"),
    (
        {"id": "a", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "invalid_value",
        "messages",
        "as content of message 0",
    ),
    ({"id": "a", "messages": ["Hi"]}, "invalid_value", "messages", "a list of objects with role and content"),
    (
        {"id": "a", "messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
        "unsupported_parameter",
        "messages",
        "'tool_calls' in message 0",
    ),
    ({"id": "a", "messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages", "refuses the messages: no robots"),
    ({"id": "good", "prompt": "x"}, "duplicate_id", "id", "'good' is the id of line 1 too; ids differ"),
]


@pytest.mark.parametrize(("line", "code", "key", "message"), POISON, ids=range(len(POISON)))
def test_a_poisoned_line_is_refused_alone(
    tmp_path: Path, prompts: Prompts, line: bytes | dict[str, Any], code: str, key: str | None, message: str
) -> None:
    intake = read(tmp_path, prompts, GOOD, line, {"id": "z", "prompt": "yes"})
    assert [row["id"] for row in intake.requests] == ["good", "z"]
    (refusal,) = intake.refusals
    assert (refusal.line, refusal.code, refusal.key) == (2, code, key)
    assert refusal.id == (None if code in ("invalid_json", "invalid_utf8") else "good" if code == "duplicate_id" else "a")
    assert re.search(message, refusal.message), refusal.message
    assert intake.reasons() == {code: 1}


@pytest.mark.parametrize("identifier", ["", 1.5, True, [1], "\ud800", 2**63])
def test_an_id_that_is_none_is_refused(tmp_path: Path, prompts: Prompts, identifier: Any) -> None:
    intake = read(tmp_path, prompts, GOOD, {"id": identifier, "prompt": "x"})
    assert (intake.refusals[0].id, intake.refusals[0].key) == (None, "id")
    intake.refusals[0].message.encode()  # can be written


def test_an_id_counts_as_taken_by_a_refused_line_too(tmp_path: Path, prompts: Prompts) -> None:
    intake = read(tmp_path, prompts, {"id": "a", "prompt": ""}, {"id": "a", "prompt": "x"}, GOOD)
    assert [(refusal.line, refusal.code) for refusal in intake.refusals] == [(1, "empty_prompt"), (2, "duplicate_id")]


def test_a_file_without_a_usable_line_is_one_error_with_the_first_fault(tmp_path: Path, prompts: Prompts) -> None:
    with pytest.raises(ArtifactError, match=r"in.jsonl: not one of its 2 requests can be served; the first fault: line 1: key 'prompt' is"):
        read(tmp_path, prompts, {"prompt": ""}, b"{")
    with pytest.raises(ArtifactError, match=r'in.jsonl: has no requests; write one a line, for example \{"prompt"'):
        read(tmp_path, prompts, b"", b" ")


def test_without_a_tokenizer_token_ids_are_served_and_the_rest_says_what_to_do(tmp_path: Path) -> None:
    rows = [{"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}, {"prompt_tokens": [1], "stop": "x"}, {"prompt_tokens": [1]}]
    intake = read(tmp_path, Prompts(tmp_path), *rows)
    assert [row["id"] for row in intake.requests] == ["line-4"]
    assert [refusal.key for refusal in intake.refusals] == ["prompt", "messages", "stop"]
    assert "has no tokenizer.json, so text cannot be read; give prompt_tokens" in intake.refusals[0].message


def test_a_tokenizer_of_another_model_is_found_out(tmp_path: Path, prompts: Prompts) -> None:
    small = Limits(FIRST_BYTE + 50, 60, "", 20, 0)
    intake = read(tmp_path, prompts, {"prompt_tokens": [1]}, {"prompt": "ÿ"}, limits=small)
    assert intake.refusals[0].code == "token_out_of_range"
    assert "the tokenizer is another model's" in intake.refusals[0].message


def test_the_digest_is_of_what_decides_the_tokens(tmp_path: Path, prompts: Prompts) -> None:
    rows = [{"id": "a", "prompt": "x", "temperature": 1}, {"id": "b", "prompt": "y"}]
    digest = read(tmp_path, prompts, *rows).sha256
    assert read(tmp_path, prompts, rows[0], b"{", rows[1]).sha256 == digest
    assert read(tmp_path, prompts, {**rows[0], "seed": derived_seed(5, "a")}, rows[1]).sha256 == digest
    for change in ({"prompt": "z"}, {"seed": 1}, {"top_p": 0.5}, {"stop": "s"}, {"max_new_tokens": 3}, {"id": "c"}):
        assert read(tmp_path, prompts, {**rows[0], **change}, rows[1]).sha256 != digest
    assert read(tmp_path, prompts, *rows, limits=Limits(BYTE_VOCAB, 60, "", 20, seed=6)).sha256 != digest


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.json", b'{\n "schema": "llmpq.workload",\n', True),
        ("w.jsonl", b'\n{"schema": "llmpq.workload", "version": 1}', True),
        ("r.json", b'{"prompt": "x"}\n{"prompt": "y"}\n', False),
        ("r.jsonl", b"{broken\n", False),
        ("r.jsonl", b"\xff\n", False),
        ("w.json", b"", True),
    ],
)
def test_artifacts_and_lines_are_told_apart(tmp_path: Path, name: str, content: bytes, expected: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_artifact(tmp_path / name) is expected


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none.jsonl: no such file; give a workload artifact or JSON lines"):
        is_artifact(tmp_path / "none.jsonl")


def test_requests_through_a_pipe_are_refused(tmp_path: Path) -> None:
    """They are read more than once: the first reader would take lines from the second."""
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(ArtifactError, match=r"in\.jsonl: not a regular file"):
        is_artifact(tmp_path / "in.jsonl")
