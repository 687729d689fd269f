"""The same model as safetensors or pickles, whole or in shards, from a folder or the hub's cache, gives the same checkpoint; pickles are
never run, and whatever is missing or damaged is one clear message."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import configure, shard
from test_gguf import write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.prepare import prepare_model

FORMATS = ("safetensors", "safetensors-shards", "bin", "bin-shards", "bin-old", "bin-old-shards")


def save_pickled(directory: Path, tensors: Mapping[str, Any], parts: int, zipped: bool = True) -> None:
    """``tensors`` as pytorch_model.bin, or in ``parts`` shards with an index."""
    if parts == 1:
        torch.save(dict(tensors), directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return
    placed = {name: f"pytorch_model-{1 + number % parts:05d}-of-{parts:05d}.bin" for number, name in enumerate(tensors)}
    for file in set(placed.values()):
        own = {name: tensors[name] for name in tensors if placed[name] == file}
        torch.save(own, directory / file, _use_new_zipfile_serialization=zipped)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """The tiny model as a Hugging Face directory with a tokenizer, as safetensors."""
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "folder"))
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")).save(str(directory / "tokenizer.json"))
    return directory


def pickled(folder: Path, parts: int, zipped: bool = True) -> dict[str, torch.Tensor]:
    """Turn the folder's weights into pickles; the tensors, with a tied head beside them as older checkpoints have it."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    save_pickled(folder, tensors, parts, zipped)
    return tensors


def source(folder: Path) -> dict[str, Any]:
    return {"name": "tiny", "source": "path", "path": str(folder)}


def complaint(folder: Path, out: Path) -> str:
    """The message that preparing the folder ends with; nothing that looks finished is left."""
    with pytest.raises(LlmpqError) as caught:
        prepare_model(source(folder), out)
    assert not out.exists() or not list(out.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_checkpoint(folder: Path, tiny_llama_dir: Path, tmp_path: Path, form: str) -> None:
    if form == "safetensors-shards":
        shard(folder)
    elif form != "safetensors":
        pickled(folder, parts=3 if form.endswith("shards") else 1, zipped="old" not in form)
    record = artifacts.read(prepare_model(source(folder), tmp_path / "out"), "model")
    assert not [name for name in record["files"] if name.endswith(".bin")]
    found, expected = Checkpoint(tmp_path / "out/checkpoint"), Checkpoint(tiny_llama_dir)
    assert found.spec == expected.spec
    pairs = [(found.layer(index), expected.layer(index)) for index in range(4)]
    for ours, theirs in [*pairs, (found.embedding(), expected.embedding()), (found.head(), expected.head())]:
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pickled_tensors_keep_their_type(folder: Path, tmp_path: Path) -> None:
    tensors = pickled(folder, parts=1)
    save_pickled(folder, {name: tensor.bfloat16() for name, tensor in tensors.items()}, 1)
    prepare_model(source(folder), tmp_path / "out")
    found = load_file(tmp_path / "out/checkpoint/model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_safetensors_are_preferred_and_pickles_beside_them_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"whatever")
    assert prepare_model(source(folder), tmp_path / "out")


class Evil:
    """Whoever unpickles this runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "old", "plain", "shard"])
def test_a_malicious_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path, form: str) -> None:
    mark = tmp_path / "ran"
    tensors = pickled(folder, parts=1)
    harmful = {**tensors, "model.layers.0.mlp.up_proj.weight": Evil(mark)}
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark), protocol=2))
    elif form == "shard":
        (folder / "pytorch_model.bin").unlink()
        save_pickled(folder, harmful, 2)
    else:
        save_pickled(folder, harmful, 1, zipped=form == "zip")
    told = complaint(folder, tmp_path / "out")
    assert "refused, it holds more than tensors or is damaged" in told
    assert "nothing in it was run. Get the model as safetensors" in told
    assert not mark.exists()
    for path in folder.glob("pytorch_model*.bin"):  # what it does where it is trusted
        pickle.loads(path.read_bytes()) if form == "plain" else torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_pickle_is_one_message(folder: Path, tmp_path: Path, zipped: bool, kept: float) -> None:
    pickled(folder, 1, zipped)
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    told = complaint(folder, tmp_path / "out")
    assert told.startswith(f"{path}: ")
    assert "download the model again" in told or "Get the model as safetensors" in told


@pytest.mark.parametrize(
    ("content", "expected"), [({"a": 3}, "'a' in it is a int"), (torch.zeros(2), "holds a Tensor"), ({1: torch.zeros(2)}, "'1' in it is")]
)
def test_a_pickle_of_other_things_is_refused(folder: Path, tmp_path: Path, content: Any, expected: str) -> None:
    pickled(folder, 1)
    torch.save(content, folder / "pytorch_model.bin")
    assert f"{expected}" in complaint(folder, tmp_path / "out")


def test_shards_that_are_missing_truncated_or_elsewhere_are_one_message(folder: Path, tmp_path: Path) -> None:
    shard(folder)
    middle, index = folder / "part-2.safetensors", folder / "model.safetensors.index.json"
    whole, placed = middle.read_bytes(), json.loads(index.read_text())
    middle.write_bytes(whole[:-1])
    assert "part-2.safetensors: not a complete safetensors file" in complaint(folder, tmp_path / "out")
    middle.unlink()
    assert "part-2.safetensors: no such file, though the checkpoint's index names it" in complaint(folder, tmp_path / "out")
    middle.write_bytes((folder / "part-1.safetensors").read_bytes())
    assert "part-2.safetensors: has no tensor 'model.layers.2." in complaint(folder, tmp_path / "out")
    placed["weight_map"]["model.norm.weight"] = "../part-ends.safetensors"
    index.write_text(json.dumps(placed))
    assert "places a tensor in '../part-ends.safetensors', which is not a file beside it" in complaint(folder, tmp_path / "out")
    index.write_text('{"weight_map": [1]}')
    assert "not an index of tensors" in complaint(folder, tmp_path / "out")


def test_pickled_shards_that_are_missing_or_wrong_are_one_message(folder: Path, tmp_path: Path) -> None:
    pickled(folder, 3)
    first, second = (folder / f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2))
    second.write_bytes(first.read_bytes())
    assert "pytorch_model-00002-of-00003.bin: has no tensor 'model." in complaint(folder, tmp_path / "out")
    second.unlink()
    assert "pytorch_model-00002-of-00003.bin: no such file, though pytorch_model.bin.index.json names it" in complaint(
        folder, tmp_path / "out"
    )


def test_a_model_with_code_of_its_own_is_refused_and_its_code_not_taken(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(folder, auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    prepare_model(source(folder), tmp_path / "fine")
    assert not list((tmp_path / "fine/checkpoint").glob("*.py"))
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert "config.json: key 'auto_map' is {'AutoModelForCausalLM': 'modeling_own.Own'}: the model brings code" in complaint(
        folder, tmp_path / "out"
    )
    assert not (tmp_path / "ran").exists()


def test_a_gguf_file_is_a_path_too(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf")
    assert artifacts.read(prepare_model(source(gguf), tmp_path / "out"), "model")["spec"]["layers"] == 2
    assert "none.gguf: cannot be read as GGUF" in complaint(tmp_path / "none.gguf", tmp_path / "other")


def byte_level(directory: Path) -> Tokenizer:
    """vocab.json, merges.txt and tokenizer_config.json as OPT has them; the tokenizer they stand for."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", *letters, "he", "hel"])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\nh e\nhe l\n")
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **special}))
    found = Tokenizer(models.BPE(vocabulary, [("h", "e"), ("he", "l")]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def test_an_older_tokenizer_becomes_a_fast_one(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "there is no tokenizer.json; save the tokenizer" in complaint(folder, tmp_path / "none")
    expected = byte_level(folder)
    prepare_model(source(folder), tmp_path / "out")
    made = Tokenizer.from_file(str(tmp_path / "out/checkpoint/tokenizer.json"))
    text = "hello, he held helmets"
    assert made.encode(text, add_special_tokens=False).ids == expected.encode(text).ids
    (folder / "merges.txt").unlink()
    (folder / "vocab.json").write_text("{")
    assert "its tokenizer files do not make a fast tokenizer" in complaint(folder, tmp_path / "bad")


def hub(folder: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Prepare the hub model own/tiny in a process of its own, with nothing but the cache under ``home``."""
    program = (
        "import sys; from llmpq.model.prepare import prepare_model\n"
        "from llmpq.errors import LlmpqError\n"
        "try: prepare_model({'name': 'tiny', 'source': 'hub', 'path': 'own/tiny', 'revision': sys.argv[2]}, sys.argv[1])\n"
        "except LlmpqError as error: sys.exit(f'told: {error}')"
    )
    command = [sys.executable, "-c", program, str(home / "out"), "main"]
    variables = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_offline_the_hubs_cache_is_all_that_is_looked_at(folder: Path, tmp_path: Path) -> None:
    told = hub(folder, tmp_path, HF_HUB_OFFLINE="1").stderr.splitlines()[-1]
    assert told.startswith("told: the hub model 'own/tiny' (revision main) is not in the cache")
    assert "HF_HUB_OFFLINE is set: unset it, or fetch the model where there is a network" in told
    pickled(folder, 2)
    cache, commit = tmp_path / "hub/models--own--tiny", "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    shutil.copytree(folder, cache / "snapshots" / commit)
    done = hub(folder, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert Checkpoint(tmp_path / "out/checkpoint").layer(3)


PEAK = """
import sys, torch
from llmpq.model.stage import StageModel
from llmpq.quant.options import OPTIONS
def kib(key):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1])
def load(directory, first, count):
    return StageModel.load(directory, None, first_layer=first, options=["32"] * count)
warm = load(sys.argv[1], 0, 1)
before = kib("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted anew from here
stage = load(sys.argv[2], 20, 2)
print((kib("VmHWM") - before) * 1024, sum(stage.resident_bytes.values()))
"""


@pytest.mark.parametrize("sharded", [False, True])
def test_two_layers_of_forty_take_the_memory_of_two(
    tiny_llama_dir: Path, write_llama: Callable[..., Path], tmp_path: Path, sharded: bool
) -> None:
    """Peak growth of a process's resident memory; a stage packs one layer at a time, so its raw tensors come on top once."""
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 1024, "num_hidden_layers": 40, "vocab_size": 4096}
    large = write_llama(tmp_path / "large", **sizes)
    if sharded:
        shard(large)
    total = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    done = subprocess.run([sys.executable, "-c", PEAK, str(tiny_llama_dir), str(large)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    growth, resident = map(int, done.stdout.split())
    assert resident == pytest.approx(2 * total / 41, rel=0.1)
    assert resident * 0.9 < growth < resident * 2.5 + (4 << 20)
    assert growth < total / 6
