"""The real SmolLM2: in fp32 our greedy tokens are those of transformers, one stage or three, and every text window scores alike."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmpq.model.stage import StageModel
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import prepare_text, token_windows

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 48, 24

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another make this test ten times longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    text = prepare_text("python-docs", tmp_path_factory.mktemp("text") / "python-docs.txt")
    return torch.tensor(token_windows(load_tokenizer(real_model_dir), text, (0, 1), windows=PROMPTS, tokens=PROMPT_TOKENS, seed=0))


def stages(directory: Path, *bounds: int) -> list[StageModel]:
    """fp32 stages cut at ``bounds`` (0 … 30)."""
    parts = itertools.pairwise(bounds)
    return [
        StageModel.load(
            directory, None, first_layer=a, options=["32"] * (b - a), embedding="32" if a == 0 else None, head="32" if b == 30 else None
        )
        for a, b in parts
    ]


def generate(pipeline: list[StageModel], prompts: torch.Tensor, lengths: torch.Tensor, count: int, micro_batch: int) -> torch.Tensor:
    """Greedy tokens [rows, count] of right-padded prompts, in micro-batches through all stages."""
    rows, caches = prompts.shape[0], [stage.new_cache(prompts.shape[0], prompts.shape[1] + count) for stage in pipeline]
    out = torch.empty(rows, count, dtype=torch.long)
    for first in range(0, rows, micro_batch):
        own = slice(first, min(first + micro_batch, rows))
        passed = prompts[own]
        for stage, cache in zip(pipeline, caches, strict=True):
            passed = stage.prefill(passed, cache, own, lengths[own])
        for step in range(count):
            out[own, step] = passed.argmax(-1)
            if step + 1 < count:
                passed = out[own, step]
                for stage, cache in zip(pipeline, caches, strict=True):
                    passed = stage.decode(passed, cache, own, lengths[own] + step)
    return out


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(real_model_dir: Path, prompts: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(real_model_dir).eval()
    with torch.inference_mode():
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = peer.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)[:, PROMPT_TOKENS:]
    found = generate(stages(real_model_dir, 0, 30), prompts, torch.full((PROMPTS,), PROMPT_TOKENS), NEW_TOKENS, PROMPTS)
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_cuts_and_ragged_micro_batches_give_the_same_tokens(real_model_dir: Path, prompts: torch.Tensor) -> None:
    lengths = torch.tensor([PROMPT_TOKENS - 3 * (row % 5) for row in range(8)])
    one = generate(stages(real_model_dir, 0, 30), prompts[:8], lengths, 12, 8)
    for bounds, micro_batch in (((0, 11, 30), 8), ((0, 1, 29, 30), 3)):
        assert torch.equal(generate(stages(real_model_dir, *bounds), prompts[:8], lengths, 12, micro_batch), one)
