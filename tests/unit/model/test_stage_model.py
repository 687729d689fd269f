"""StageModel: what it loads, what it accounts for, and that rows, slots and padding never touch one another."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmpq.errors import ArtifactError, LlmpqError
from llmpq.model.cache import StageCache
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.quant.bytes import kv_layer_bytes, resident_end_bytes, resident_layer_bytes
from llmpq.quant.files import plain_layer, write_layer
from llmpq.quant.layer_index import layer_file_name, layers_digest


@pytest.fixture(scope="module")
def whole(tiny_llama_dir: Path) -> StageModel:
    return load(tiny_llama_dir, 0, ["32"] * 4, "32", "32")


@pytest.fixture(scope="module")
def layer_files(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer files of option 16 in two groups, as quantise leaves them."""
    root, checkpoint = tmp_path_factory.mktemp("quantised"), Checkpoint(tiny_llama_dir)
    for index in range(4):
        layer = plain_layer(checkpoint.layer(index), checkpoint.spec.operators(), index, "16")
        group = root / f"layers-{index // 2 * 2:03d}"
        group.mkdir(exist_ok=True)
        write_layer(group / layer_file_name(index, "16"), layer)
    return root


def load(
    directory: Path, first: int, options: list[str], embedding: str | None, head: str | None, quantised: Path | None = None, **more: object
) -> StageModel:
    return StageModel.load(directory, quantised, first_layer=first, options=options, embedding=embedding, head=head, **more)


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def test_layer_files_and_the_checkpoint_give_the_same_sixteen_bit_stage(tiny_llama_dir: Path, layer_files: Path) -> None:
    tokens = ids(3, 8)
    from_files = load(tiny_llama_dir, 0, ["16"] * 4, "16", "16", layer_files)
    from_checkpoint = load(tiny_llama_dir, 0, ["16"] * 4, "16", "16")
    assert torch.equal(from_files.logits(tokens), from_checkpoint.logits(tokens))
    assert from_files.weights_digest == from_checkpoint.weights_digest
    layers_alone = load(tiny_llama_dir, 0, ["16"] * 4, None, None, layer_files)
    assert layers_alone.weights_digest == layers_digest(sorted(layer_files.glob("*/*.safetensors")))


def test_a_stage_reads_the_files_of_its_own_layers_only(tiny_llama_dir: Path, layer_files: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(layer_files, tmp_path / "own"))
    shutil.rmtree(own / "layers-000")
    stage = load(tiny_llama_dir, 2, ["16", "16"], None, None, own)
    assert (stage.first_layer, len(stage.layers), stage.resident_bytes["embedding"], stage.resident_bytes["head"]) == (2, 2, 0, 0)
    with pytest.raises(LlmpqError, match="quantise layer 1 at option '16'"):
        load(tiny_llama_dir, 1, ["16"], None, None, own)


def test_of_groups_named_one_by_one_no_other_is_read(tiny_llama_dir: Path, layer_files: Path, tmp_path: Path) -> None:
    """After a change of layers_per_job the groups of before still lie beside those in use."""
    own = Path(shutil.copytree(layer_files, tmp_path / "own"))
    in_use = sorted(own.iterdir())
    shutil.copytree(own / "layers-000", own / "layers-000-001")
    with pytest.raises(ArtifactError, match="layer 0 at option '16' is there twice"):
        load(tiny_llama_dir, 0, ["16"] * 4, "16", "16", own)
    stage = StageModel.load(tiny_llama_dir, in_use, first_layer=0, options=["16"] * 4, embedding="16", head="16")
    assert stage.weights_digest == load(tiny_llama_dir, 0, ["16"] * 4, "16", "16", layer_files).weights_digest


def test_a_file_of_another_layer_or_option_is_refused(tiny_llama_dir: Path, layer_files: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(layer_files, tmp_path / "own"))
    three, four = own / "layers-002" / layer_file_name(2, "16"), own / "layers-002" / layer_file_name(3, "16")
    shutil.copyfile(three, four)
    with pytest.raises(ArtifactError, match=r"layer-003.16.safetensors: key 'layer' of its header is 2, expected 3"):
        load(tiny_llama_dir, 2, ["16", "16"], None, None, own)
    shutil.copyfile(three, three.with_name(layer_file_name(2, "8")))
    with pytest.raises(ArtifactError, match=r"layer-002.8.safetensors: key 'option' of its header is '16', expected '8'"):
        load(tiny_llama_dir, 2, ["8"], None, None, own)


def test_the_digest_says_which_layer_is_where(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Two layers of equal weights at two places are two models."""
    twin = plain_layer(Checkpoint(tiny_llama_dir).layer(0), ["qkv", "o", "gate_up", "down"], 1, "16")
    write_layer(tmp_path / layer_file_name(1, "16"), twin)
    here = load(tiny_llama_dir, 0, ["16"], None, None)
    there = load(tiny_llama_dir, 1, ["16"], None, None, tmp_path)
    assert here.weights_digest != there.weights_digest


def test_options_may_differ_by_layer_and_each_changes_the_result(tiny_llama_dir: Path, layer_files: Path, whole: StageModel) -> None:
    tokens = ids(2, 6)
    mixed = load(tiny_llama_dir, 0, ["32", "16", "32", "32"], "32", "32", layer_files)
    difference = (mixed.logits(tokens) - whole.logits(tokens)).abs().max()
    assert 0 < difference < 0.05
    assert mixed.weights_digest != whole.weights_digest


def test_digests_of_the_stages_make_the_digest_of_the_model(tiny_llama_dir: Path, whole: StageModel) -> None:
    parts = [load(tiny_llama_dir, first, ["32"] * 2, *(("32", None) if first == 0 else (None, "32"))) for first in (0, 2)]
    assert parts[0].digest_lines + parts[1].digest_lines == whole.digest_lines
    assert [line.rsplit(" ", 1)[0] for line in whole.digest_lines] == ["embedding 32", *(f"layer {i} 32" for i in range(4)), "head 32"]
    assert len({line.rsplit(" ", 1)[1] for line in whole.digest_lines}) == 6


def test_the_digest_covers_the_ends(tiny_llama_dir: Path, whole: StageModel, tmp_path: Path) -> None:
    """Another option of the ends, or other weights in them, is another model, though its layers are the same."""
    half = load(tiny_llama_dir, 0, ["32"] * 4, "16", "16")
    assert half.weights_digest != whole.weights_digest
    other = Path(shutil.copytree(tiny_llama_dir, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    changed = load(other, 0, ["32"] * 4, "32", "32")
    assert changed.digest_lines[:-1] == whole.digest_lines[:-1]
    assert changed.weights_digest != whole.weights_digest


def test_an_embedding_beyond_fp16_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_llama_dir, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight"][5, 3] = 1e5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    load(other, 0, [], "32", None)
    with pytest.raises(LlmpqError, match=r"the embedding: a weight reaches 100000, beyond fp16"):
        load(other, 0, [], "16", None)


def test_bytes_are_announced_before_they_are_taken_and_add_up(tiny_llama_dir: Path, whole: StageModel) -> None:
    told: list[tuple[str, int]] = []
    stage = load(tiny_llama_dir, 1, ["16", "32"], "16", "16", on_bytes=lambda kind, count: told.append((kind, count)))
    spec = whole.spec
    assert told == [
        ("embedding", resident_end_bytes(spec, "embedding", "16")),
        ("head", resident_end_bytes(spec, "head", "16")),
        ("weights", resident_layer_bytes(spec, "16")),
        ("weights", resident_layer_bytes(spec, "32")),
    ]
    assert stage.resident_bytes == {"embedding": told[0][1], "head": told[1][1], "weights": told[2][1] + told[3][1]}


def test_a_ledger_can_refuse_a_layer(tiny_llama_dir: Path) -> None:
    def refuse(kind: str, count: int) -> None:
        raise LlmpqError(f"{kind}: {count} bytes do not fit")

    with pytest.raises(LlmpqError, match=r"weights: .* bytes do not fit"):
        load(tiny_llama_dir, 0, ["32"], None, None, on_bytes=refuse)


def test_the_cache_takes_the_bytes_that_the_planner_counts(whole: StageModel) -> None:
    assert whole.new_cache(slots=5, capacity=24).nbytes == 4 * kv_layer_bytes(whole.spec, 5, 24, "32")


def test_every_layer_has_a_cache_of_its_own_option(tiny_llama_dir: Path, whole: StageModel) -> None:
    mixed = load(tiny_llama_dir, 0, ["32", "32/kv8", "32/kv8", "32/kv16"], "32", "32")
    expected = sum(times * kv_layer_bytes(whole.spec, 5, 24, kv) for kv, times in {"32": 1, "16": 1, "8": 2}.items())
    assert mixed.new_cache(slots=5, capacity=24).nbytes == expected
    kept = [torch.float32] * 2 + [torch.int8, torch.float32] * 4 + [torch.float16] * 2
    assert [part.dtype for part in parts_of(mixed.new_cache(1, 4))] == kept
    assert mixed.weights_digest == whole.weights_digest  # the cache is no weight


def parts_of(cache: StageCache) -> list[torch.Tensor]:
    return [part for layer in cache.layers for parts in layer for part in parts]


@pytest.mark.parametrize("kv", ["16", "8"])
def test_a_micro_batch_writes_its_own_slots_only(tiny_llama_dir: Path, kv: str) -> None:
    whole = load(tiny_llama_dir, 0, [f"32/kv{kv}"] * 4, "32", "32")
    cache = whole.new_cache(6, 16)
    whole.prefill(ids(2, 5), cache, slice(2, 4), torch.tensor([5, 5]))
    whole.decode(ids(2, 1)[:, 0], cache, slice(2, 4), torch.tensor([5, 5]))
    for part in parts_of(cache):
        assert part[2:4, :, :6].abs().amax(-1).gt(0).all()
        assert not part[:2].any()
        assert not part[4:].any()
        assert not part[:, :, 6:].any()


@pytest.mark.parametrize("kv", ["16", "8"])
def test_padding_and_other_slots_cannot_be_seen(tiny_llama_dir: Path, kv: str) -> None:
    """Two runs that differ in padding tokens and in what earlier requests left in the cache give the same bits."""
    whole = load(tiny_llama_dir, 0, [f"32/kv{kv}"] * 4, "32", "32")
    tokens, lengths, seen = ids(3, 7), torch.tensor([7, 3, 5]), []
    for filler in (4, 90):
        cache = whole.new_cache(3, 12)
        for part in parts_of(cache):
            part.fill_(filler)
        padded = tokens.clone()
        padded[torch.arange(7) >= lengths[:, None]] = filler
        first = whole.prefill(padded, cache, slice(0, 3), lengths)
        seen.append(torch.cat([first, whole.decode(first.argmax(-1), cache, slice(0, 3), lengths)]))
    assert torch.equal(seen[0], seen[1])


def test_decode_does_not_depend_on_the_capacity_of_the_cache(whole: StageModel) -> None:
    tokens, lengths, seen = ids(2, 6), torch.tensor([6, 4]), []
    for capacity in (7, 40):
        cache = whole.new_cache(2, capacity)
        whole.prefill(tokens, cache, slice(0, 2), lengths)
        seen.append(whole.decode(tokens[:, 0], cache, slice(0, 2), lengths))
    assert torch.equal(seen[0], seen[1])


def test_hidden_then_head_is_logits_and_a_middle_stage_takes_hidden_states(tiny_llama_dir: Path, whole: StageModel) -> None:
    tokens = ids(2, 5)
    front, back = (
        load(tiny_llama_dir, 0, ["32"] * 2, "32", None),
        load(tiny_llama_dir, 2, ["32"] * 2, None, "32"),
    )
    assert back.head is not None
    assert torch.equal(back.head(back.hidden(front.hidden(tokens))), whole.logits(tokens))
    with pytest.raises(LlmpqError, match="logits need a stage that holds the embedding, all layers and the head"):
        front.logits(tokens)


def test_sequences_that_do_not_fit_are_refused(whole: StageModel) -> None:
    with pytest.raises(LlmpqError, match="129 tokens are more than the llama model allows: its 128 positions"):
        whole.new_cache(1, 129)
    with pytest.raises(LlmpqError, match="129 tokens are more than"):
        whole.logits(ids(1, 129))
    cache = whole.new_cache(1, 4)
    with pytest.raises(LlmpqError, match="a prompt of 5 tokens does not fit a KV cache of 4"):
        whole.prefill(ids(1, 5), cache, slice(0, 1), torch.tensor([5]))
    with pytest.raises(LlmpqError, match="decoding position 4, but the KV cache holds 4"):
        whole.decode(ids(1, 1)[0], cache, slice(0, 1), torch.tensor([4]))


def test_unknown_and_uncalibrated_options_are_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(LlmpqError, match="unknown weight option '5'"):
        load(tiny_llama_dir, 0, ["5"], None, None)
    with pytest.raises(LlmpqError, match="option '4' has to be quantised"):
        load(tiny_llama_dir, 0, ["4"], None, None)
    with pytest.raises(LlmpqError, match="the embedding cannot be kept at '4'; it may have 32, 16, 8"):
        load(tiny_llama_dir, 0, ["32"], "4", None)
