"""The real model over several stages: the tokens of transformers in fp32, and the same tokens whatever the micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from serve_cases import Case

TOLERANCE = 1e-3
"""A top-2 margin (of logits) below which another micro-batch size may flip a greedy choice: matrix products change with the shape of
the batch by up to 1e-5 relative, which 30 layers and logits around 20 amplify to a few 1e-4."""


def prompts(checkpoint: Path, lengths: list[int]) -> list[list[int]]:
    """Consecutive pieces of the Python documentation."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    ids = (
        Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode("\n".join(topics[key] for key in sorted(topics))[20_000:80_000]).ids
    )
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def workload(checkpoint: Path, lengths: list[int], new_tokens: int) -> list[dict[str, Any]]:
    return [
        {"id": index, "prompt_tokens": prompt, "max_new_tokens": new_tokens} for index, prompt in enumerate(prompts(checkpoint, lengths))
    ]


def generated(checkpoint: Path, rows: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Greedy tokens of transformers, in batches of equal prompt lengths (no padding)."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)  # threads that wait for one another are many times slower on a busy machine
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokens: dict[int, list[int]] = {}
    for length in sorted({len(row["prompt_tokens"]) for row in rows}):
        group = [row for row in rows if len(row["prompt_tokens"]) == length]
        prompt = torch.tensor([row["prompt_tokens"] for row in group])
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=group[0]["max_new_tokens"],
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens.update({row["id"]: line[length:].tolist() for row, line in zip(group, found, strict=True)})
    return tokens


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.timeout(1800)  # about 3 minutes when nothing else runs
def test_fp32_tokens_are_those_of_transformers(tmp_path: Path, real_model_dir: Path) -> None:
    """5,120 tokens, ragged prompts, ragged micro-batches, two stages: no exception."""
    rows = workload(real_model_dir, [30, 47] * 16, 160)
    case = Case(tmp_path, real_model_dir, rows, [13, 17], (5, 12))
    document = case.serve()
    expected = generated(real_model_dir, rows)
    assert document["new_tokens"] == 5120
    results = case.results()
    exceptions = {}
    for row in results:
        step = next((i for i, pair in enumerate(zip(row["tokens"], expected[row["id"]], strict=True)) if pair[0] != pair[1]), None)
        if step is not None:
            exceptions[row["id"]] = (step, row["margins"][step])
    assert exceptions == {}, f"request: (token, margin) {exceptions}"
    assert all(row["text"] for row in results)


@pytest.mark.real_model
@pytest.mark.slow
def test_16_bit_tokens_do_not_depend_on_micro_batches_but_for_near_ties(tmp_path: Path, real_model_dir: Path) -> None:
    rows = workload(real_model_dir, [12, 40, 25, 64, 33, 18, 7, 50], 40)
    one = Case(tmp_path / "one", real_model_dir, rows, [30], (8, 8), options=["16"] * 30, ends="16")
    two = Case(tmp_path / "two", real_model_dir, rows, [20, 10], (2, 3), options=["16"] * 30, ends="16")
    cut = Case(tmp_path / "cut", real_model_dir, rows, [7, 23], (2, 3), options=["16"] * 30, ends="16")
    for case in (one, two, cut):
        case.serve()
    assert (tmp_path / "two" / "requests.jsonl").read_bytes() == (tmp_path / "cut" / "requests.jsonl").read_bytes()
    exceptions = []
    for first, second in zip(one.results(), two.results(), strict=True):
        step = next((i for i, pair in enumerate(zip(first["tokens"], second["tokens"], strict=True)) if pair[0] != pair[1]), None)
        if step is not None:  # what follows a different token is another text
            exceptions.append((first["id"], step, first["margins"][step]))
    print("exceptions (request, token, margin):", exceptions)
    assert all(margin <= TOLERANCE for _, _, margin in exceptions)
    assert len(exceptions) <= 1


@pytest.mark.real_model
@pytest.mark.slow
def test_bytes_are_those_of_the_ledger(tmp_path: Path, real_model_dir: Path) -> None:
    """What the processes really grew by is what was entered, plus workspace and the runtime's own."""
    rows = workload(real_model_dir, [64] * 8, 4)
    case = Case(tmp_path, real_model_dir, rows, [15, 15], (4, 8), options=["16"] * 30, ends="16")
    for stage in case.serve()["stages"]:
        measured = stage["bytes"]["measured"]
        entered = sum(measured[kind] for kind in ("weights", "kv", "embedding", "head", "transport"))
        assert entered * 0.99 < measured["rss_growth"] < entered * 1.02 + (40 << 20)
