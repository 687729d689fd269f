"""The decoder computes what transformers computes: every family, fp32, to 1e-4 on the logits."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_families import CASES, Peer, build

from llmpq.model.spec import ModelSpec
from llmpq.model.stage import StageModel

TOLERANCE = 1e-4
LENGTHS = (5, 9, 2, 7)


@pytest.fixture(scope="module", params=list(CASES))
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def whole(peer: Peer) -> StageModel:
    return load(peer.directory, 0, 3, True, True)


def load(directory: Path, first: int, count: int, embedding: bool, head: bool) -> StageModel:
    options = ["32"] * count
    return StageModel.load(
        directory, None, first_layer=first, options=options, embedding="32" if embedding else None, head="32" if head else None
    )


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts of different lengths, right-padded with a real token, so that padding would show if it were looked at."""
    ids = torch.randint(3, 61, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return ids, torch.tensor(LENGTHS)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.abs().max() > 0.1, "the reference is too flat to tell anything"
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_all_logits_agree_with_transformers(peer: Peer, whole: StageModel) -> None:
    ids, _ = prompts()
    with torch.inference_mode():
        close(whole.logits(ids), peer.model(ids).logits)


def test_ragged_prefill_and_decode_agree_with_full_forwards_of_each_row(peer: Peer, whole: StageModel) -> None:
    ids, lengths = prompts()
    cache = whole.new_cache(slots=6, capacity=16)
    rows = slice(1, 5)
    sequences = [ids[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    logits = whole.prefill(ids, cache, rows, lengths)
    positions = lengths.clone()
    for step in range(5):
        close(logits, torch.stack([peer.logits(sequence)[-1] for sequence in sequences]))
        chosen = torch.tensor([(7 * step + 11 * row) % 58 + 3 for row in range(len(sequences))])
        for sequence, token in zip(sequences, chosen.tolist(), strict=True):
            sequence.append(token)
        logits = whole.decode(chosen, cache, rows, positions)
        positions += 1


def test_decode_of_equal_lengths_agrees_with_full_forwards(peer: Peer, whole: StageModel) -> None:
    ids, _ = prompts()
    cache = whole.new_cache(slots=4, capacity=12)
    whole.prefill(ids[:, :6], cache, slice(0, 4), torch.full((4,), 6))
    logits = whole.decode(ids[:, 6], cache, slice(0, 4), torch.full((4,), 6))
    close(logits, torch.stack([peer.logits(row[:7].tolist())[-1] for row in ids]))


def pipeline(stages: list[StageModel]) -> list[torch.Tensor]:
    """Logits of a ragged prefill in two micro-batches and of three decode rounds, through the stages in turn."""
    ids, lengths = prompts()
    caches = [stage.new_cache(4, 16) for stage in stages]
    seen, positions = [], lengths.clone()
    for rows in (slice(0, 2), slice(2, 4)):
        passed = ids[rows]
        for stage, cache in zip(stages, caches, strict=True):
            passed = stage.prefill(passed, cache, rows, lengths[rows])
        seen.append(passed)
    tokens = torch.cat(seen).argmax(-1)
    for _ in range(3):
        passed = tokens
        for stage, cache in zip(stages, caches, strict=True):
            passed = stage.decode(passed, cache, slice(0, 4), positions)
        seen.append(passed)
        tokens, positions = passed.argmax(-1), positions + 1
    return seen


@pytest.mark.parametrize("cut", [(1,), (2,), (1, 2)])
def test_any_cut_is_bit_identical_to_one_stage(peer: Peer, whole: StageModel, cut: tuple[int, ...]) -> None:
    bounds = (0, *cut, 3)
    stages = [load(peer.directory, a, b - a, a == 0, b == 3) for a, b in itertools.pairwise(bounds)]
    for found, expected in zip(pipeline(stages), pipeline([whole]), strict=True):
        assert torch.equal(found, expected)


def test_the_spec_tells_the_family_apart(peer: Peer) -> None:
    spec = ModelSpec.from_directory(peer.directory)
    assert spec.family == peer.case.split("-")[0]
    assert (spec.layers, spec.hidden, spec.vocab) == (3, 48, 61)
    assert spec.tied_embeddings == peer.model.config.tie_word_embeddings
    assert spec.eos_token_ids == (2,)
