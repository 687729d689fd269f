"""OpenAI's batch format: lines in, answers out, and what this runtime cannot do is said by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from serve_cases import BYTE_VOCAB, byte_tokenizer

from llmpq.serve import openai_batch
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import Limits
from llmpq.serve.request_file import Intake, read_lines

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Hi"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return Prompts(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def line(custom_id: str, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **changes}


def read(tmp_path: Path, prompts: Prompts, *lines: Any) -> Intake:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")
    return read_lines(tmp_path / "in.jsonl", prompts, Limits(BYTE_VOCAB, 60, "as the model takes", 20, 0), lambda _: None)


def test_both_endpoints_and_all_their_forms_of_a_prompt(tmp_path: Path, prompts: Prompts) -> None:
    rows = [line("chat", CHAT), line("text", TEXT), line("ids", {**TEXT, "prompt": [9, 10]})]
    intake = read(tmp_path, prompts, *rows)
    chat, text, ids = intake.requests
    assert chat["prompt_tokens"] == [1, *prompts.of_text("user: Hi\nassistant: ")]
    assert text["prompt_tokens"] == prompts.of_text("Hi")
    assert ids["prompt_tokens"] == [9, 10]
    assert intake.origins["text"] == (2, "/v1/completions", "m")
    assert intake.openai


def test_parameters_are_taken_over(tmp_path: Path, prompts: Prompts) -> None:
    values = {"max_tokens": 4, "temperature": 0.5, "top_p": 0.5, "seed": 9, "stop": ["a", "b"], "n": 1, "stream": False, "user": "u"}
    newer = {"max_completion_tokens": 7, "max_tokens": 4, "logit_bias": {}, "tools": None, "response_format": {"type": "text"}}
    first, second = read(tmp_path, prompts, line("a", {**CHAT, **values}), line("b", {**CHAT, **newer})).requests
    assert (first["max_new_tokens"], first["stop"]) == (4, ["a", "b"])
    assert first["sampling"] == {"temperature": 0.5, "top_p": 0.5, "seed": 9}
    assert second["max_new_tokens"] == 7
    assert "sampling" not in second


@pytest.mark.parametrize(
    ("bad", "code", "key", "message"),
    [
        (line("a", {**CHAT, "n": 2}), "unsupported_parameter", "body.n", "key 'body.n' is 2; only 1 is supported; leave it out"),
        (
            line("a", {**CHAT, "logprobs": True, "top_logprobs": 2}),
            "unsupported_parameter",
            "body.logprobs",
            "only False or 0 is supported",
        ),
        (line("a", {**CHAT, "stream": True}), "unsupported_parameter", "body.stream", "only False is supported"),
        (line("a", {**CHAT, "frequency_penalty": 0.5}), "unsupported_parameter", "body.frequency_penalty", "only 0 is supported"),
        (line("a", {**CHAT, "tools": [{}]}), "unsupported_parameter", "body.tools", "only [] is supported"),
        (line("a", {**CHAT, "reasoning_effort": "low"}), "unsupported_parameter", "body.reasoning_effort", "is not supported by this"),
        (line("a", {**CHAT, "prompt": "x"}), "unsupported_parameter", "body.prompt", "is not supported by this runtime; leave it out"),
        (
            line("a", {**TEXT, "prompt": ["Hi", "you"]}),
            "invalid_value",
            "body.prompt",
            "key 'body.prompt' is ['Hi', 'you']; a list of token",
        ),
        (line("a", {**CHAT, "temperature": 101}), "invalid_value", "body.temperature", "key 'body.temperature' is 101"),
        (line("a", {**CHAT, "max_completion_tokens": 0}), "invalid_value", "body.max_completion_tokens", "whole number of at least 1"),
        (line("a", {**CHAT, "max_tokens": 60}), "too_long", "body.max_tokens", "are more than 60 together"),
        (line("a", {"model": "m", "messages": []}), "empty_prompt", "body.messages", "is empty"),
        (line("a", CHAT, url="/v1/embeddings"), "invalid_value", "url", "/v1/chat/completions or /v1/completions is expected"),
        (line("a", CHAT, method="GET"), "invalid_value", "method", "POST is expected"),
        (line("a", CHAT, priority=1), "unsupported_parameter", "priority", "key 'priority' is not supported"),
        ({**line("a", CHAT), "body": "x"}, "invalid_value", "body", "is not an object"),
        (line("good", CHAT), "duplicate_id", "custom_id", "is the id of line 1 too"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_line_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, prompts: Prompts, bad: Any, code: str, key: str, message: str
) -> None:
    intake = read(tmp_path, prompts, line("good", CHAT), bad)
    (refusal,) = intake.refusals
    assert (refusal.line, refusal.id, refusal.code, refusal.key, refusal.openai) == (2, bad["custom_id"], code, key, True)
    assert message in refusal.message


@pytest.mark.parametrize("custom_id", [None, 3, ""])
def test_answers_are_told_apart_by_custom_id(tmp_path: Path, prompts: Prompts, custom_id: Any) -> None:
    intake = read(tmp_path, prompts, line("good", CHAT), {**line("", CHAT), "custom_id": custom_id})
    assert (intake.refusals[0].id, intake.refusals[0].key) == (None, "custom_id")


ROW = {"id": "a", "prompt_tokens": 3, "tokens": [9, 10, 7], "text": "ab", "finish_reason": "eos"}


@pytest.mark.parametrize(("reason", "told"), [("eos", "stop"), ("stop", "stop"), ("length", "length")])
def test_an_answer_of_the_chat_endpoint(reason: str, told: str) -> None:
    found = openai_batch.answer({**ROW, "finish_reason": reason}, openai_batch.CHAT, "m", 1700000000, "0123456789abcdef")
    assert (found["custom_id"], found["error"], found["response"]["status_code"]) == ("a", None, 200)
    assert found["id"].startswith("batch_req-")
    body = found["response"]["body"]
    assert body["id"].startswith("chatcmpl-")
    assert {key: body[key] for key in ("object", "created", "model", "system_fingerprint")} == {
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "fp_0123456789ab",
    }
    assert body["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "logprobs": None, "finish_reason": told}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert "seed" not in body


def test_an_answer_of_the_completions_endpoint_and_its_seed() -> None:
    body = openai_batch.answer({**ROW, "seed": 12}, openai_batch.COMPLETIONS, "m", 1, "f")["response"]["body"]
    assert (body["object"], body["seed"], body["choices"][0]["text"]) == ("text_completion", 12, "ab")
    assert "message" not in body["choices"][0]


def test_a_refusal_tells_both_kinds_of_readers() -> None:
    found = openai_batch.refusal("a", 3, "too_long", "body.max_tokens", "much too long")
    assert found["error"] == {"code": "too_long", "message": "line 3: much too long"}
    assert found["response"]["status_code"] == 400
    error = {"message": "line 3: much too long", "type": "invalid_request_error", "param": "body.max_tokens", "code": "too_long"}
    assert found["response"]["body"] == {"error": error}
    assert found["id"] != openai_batch.refusal("a", 4, "too_long", None, "")["id"]
