"""Requests in vLLM's words, and its answers in ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from serve_cases import BYTE_VOCAB, byte_tokenizer

from llmpq.serve.job import Settings
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import Limits
from llmpq.serve.request_file import Intake, read_lines
from llmpq.vllm_serve.answers import asked, write_answers

LIMITS = Limits(vocab=BYTE_VOCAB, tokens=60, tokens_why="which is max_model_len of the export", max_new_tokens=20, seed=5)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return Prompts(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def intake(tmp_path: Path, prompts: Prompts, *lines: dict[str, Any]) -> Intake:
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return read_lines(tmp_path / "in.jsonl", prompts, LIMITS, lambda _: None)


def written(tmp_path: Path, prompts: Prompts, found: Intake, *answers: dict[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    counts = write_answers(tmp_path / "out.jsonl", found, answers, prompts, Settings(slots=1), "ab" * 32)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()], counts


def test_sampling_and_stop_strings_are_vllms_own_arguments(tmp_path: Path, prompts: Prompts) -> None:
    plain, sampled = {"id": "a", "prompt_tokens": [9]}, {"id": "b", "prompt_tokens": [9], "temperature": 0.5, "top_p": 0.9, "seed": 7}
    stopped = {"id": "c", "prompt_tokens": [9], "max_new_tokens": 3, "stop": "x"}
    assert asked(intake(tmp_path, prompts, plain, sampled, stopped)) == [
        {"prompt_tokens": [9], "max_new_tokens": 20, "sampling": {}},
        {"prompt_tokens": [9], "max_new_tokens": 20, "sampling": {"temperature": 0.5, "top_p": 0.9, "seed": 7}},
        {"prompt_tokens": [9], "max_new_tokens": 3, "sampling": {"stop": ["x"]}},
    ]


def test_a_text_ends_before_its_stop_string_whenever_vllm_noticed(tmp_path: Path, prompts: Prompts) -> None:
    tokens = prompts.of_text("one two three")
    found = intake(tmp_path, prompts, {"id": "a", "prompt_tokens": [9], "stop": ["tw"]})
    margins = [1.0 + place for place in range(len(tokens))]
    (row,), counts = written(tmp_path, prompts, found, {"tokens": tokens, "finish_reason": "stop", "margins": margins})
    assert (row["text"], row["finish_reason"]) == ("one ", "stop")
    assert row["tokens"] == prompts.of_text("one tw")
    assert (row["min_margin"], row["min_margin_token"]) == (1.0, 0)
    assert counts == [6]


def test_ends_and_refusals_are_told_as_by_the_own_runtime(tmp_path: Path, prompts: Prompts) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    openai = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    found = intake(tmp_path, prompts, {"id": "a", "prompt": "Hi"}, {"id": "b", "prompt": "Hi", "max_new_tokens": 60}, openai)
    answers = [{"tokens": [9, 2], "finish_reason": "stop"}, {"tokens": prompts.of_text("ok"), "finish_reason": "length"}]
    (ended, refused, answered), _ = written(tmp_path, prompts, found, *answers)
    assert (ended["finish_reason"], ended["min_margin"]) == ("eos", None)
    assert refused["error"]["code"] == "too_long"
    assert answered["response"]["body"]["choices"][0]["message"]["content"] == "ok"
    assert answered["response"]["body"]["choices"][0]["finish_reason"] == "length"
