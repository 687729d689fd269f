"""Requests are cut from a text: as many and as long as asked, never overlapping, the same for the same seed."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.workload import write_workload

SETTINGS: dict[str, Any] = {
    "requests": 8,
    "prompt_tokens": 12,
    "prompt_tokens_min": 12,
    "new_tokens": 5,
    "region": [0.25, 0.75],
    "seed": 0,
    "text": "words",
    "ignore_eos": True,
}
WORDS = 4000


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of numbered words, each one token whose id is its number."""
    vocabulary = {f"w{number:05}": number for number in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "[UNK]": WORDS}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{number:05}" for number in range(WORDS)), encoding="utf-8")
    return path


def prompts(text: Path, **changes: Any) -> list[list[int]]:
    document = write_workload("test", {**SETTINGS, **changes}, text, text.parent, text.parent / "workload.json")
    assert artifacts.read(text.parent / "workload.json", "workload") == document
    assert all(request["max_new_tokens"] == 5 for request in document["requests"])
    return [request["prompt_tokens"] for request in document["requests"]]


def test_prompts_have_the_length_asked_for_and_lie_in_the_region_without_overlap(text: Path) -> None:
    found = prompts(text)
    assert [len(ids) for ids in found] == [12] * 8
    used = [number for ids in found for number in ids]
    assert len(set(used)) == len(used)
    assert min(used) >= WORDS / 4 - 1
    assert max(used) <= 3 * WORDS / 4
    for ids in found:
        assert ids == list(range(ids[0], ids[0] + 12))


def test_prompts_of_different_lengths_stay_within_their_bounds_and_one_is_the_longest(text: Path) -> None:
    lengths = [len(ids) for ids in prompts(text, prompt_tokens_min=3, requests=40)]
    assert max(lengths) == lengths[0] == 12
    assert min(lengths) >= 3
    assert len(set(lengths)) > 4


def test_the_seed_decides(text: Path) -> None:
    assert prompts(text) == prompts(text)
    assert prompts(text) != prompts(text, seed=1)


def test_a_region_that_is_too_short_is_named(text: Path) -> None:
    with pytest.raises(LlmpqError, match=r"words\.txt: region \[0\.25, 0\.26\]"):
        prompts(text, region=[0.25, 0.26])
