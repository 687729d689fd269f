"""An experiment packed: what is in it, what is only named, and that the same files give the same bytes."""

import hashlib
import json
import tarfile
import time
from pathlib import Path

import pytest

from llmpq import artifacts
from llmpq.archive import pack
from llmpq.config import compose
from llmpq.errors import ArtifactError

ROOT = Path(__file__).parents[2]
HOME = "results/experiments/smoke"


@pytest.fixture(scope="module")
def experiment() -> dict:
    return compose(ROOT / "config", ["smoke"])["smoke"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    files = {
        f"{HOME}/report.html": "<html>",
        f"{HOME}/summary.json": json.dumps({"provenance": {"git_revision": "abc", "lock_sha256": "def"}}),
        f"{HOME}/config.yaml": "name: smoke\n",
        f"{HOME}/llmpq/plan.json": "{}",
        f"{HOME}/figures/times.csv": "a,b\n",
        f"{HOME}/llmpq/journal/journal-1.jsonl": "not part of it",
        "results/quantised/smollm2-135m-instruct/tiny/layers-000-014/layer-000-4.safetensors": "weights",
        "results/logs/plan/smoke/llmpq.log": "planned",
        "results/logs/profile/tiny/smollm2-135m-instruct/cpu-fast.log": "timed",
        "results/logs/plan/duo/llmpq.log": "another experiment",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_results_and_logs_are_packed_and_weights_are_named(finished: Path, experiment: dict) -> None:
    manifest = pack(experiment, finished / "smoke.tar.gz", finished)
    with tarfile.open(finished / "smoke.tar.gz") as archive:
        inside = {member.name.removeprefix("smoke/"): archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert set(inside) == {
        "README.txt",
        "manifest.json",
        *(f"{HOME}/{name}" for name in ("report.html", "summary.json", "config.yaml", "llmpq/plan.json", "figures/times.csv")),
        "results/logs/plan/smoke/llmpq.log",
        "results/logs/profile/tiny/smollm2-135m-instruct/cpu-fast.log",
    }
    assert json.loads(inside["manifest.json"])["files"] == manifest["files"]
    named = {entry["path"]: entry for entry in manifest["files"]}
    weights = named["results/quantised/smollm2-135m-instruct/tiny/layers-000-014/layer-000-4.safetensors"]
    assert weights["packed"] is False
    assert (weights["bytes"], weights["sha256"]) == (7, hashlib.sha256(b"weights").hexdigest())
    assert all((finished / path).read_bytes() == inside[path] for path, entry in named.items() if entry["packed"])
    assert b"revision abc, with its requirements.lock (sha256 def)" in inside["README.txt"]


def test_equal_files_give_equal_archives(finished: Path, experiment: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "provenance", lambda *_, **__: {"created": "then"})
    pack(experiment, finished / "first.tar.gz", finished)
    time.sleep(1.1)  # times in tar and gzip are whole seconds
    for path in (finished / HOME).rglob("*"):
        path.touch()
    pack(experiment, finished / "second.tar.gz", finished)
    assert (finished / "first.tar.gz").read_bytes() == (finished / "second.tar.gz").read_bytes()


def test_an_unfinished_experiment_is_not_packed(finished: Path, experiment: dict) -> None:
    (finished / HOME / "report.html").unlink()
    with pytest.raises(ArtifactError, match=r"report\.html: no such file; an experiment is packed when it has finished"):
        pack(experiment, finished / "smoke.tar.gz", finished)
    assert not (finished / "smoke.tar.gz").exists()
