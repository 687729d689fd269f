"""Reading refuses what is wrong and says where; writing is atomic."""

import json
import math
from pathlib import Path

import pytest

from llmpq import artifacts
from llmpq.errors import ArtifactError

KIND = "workload"
BODY = {"name": "tiny", "requests": [{"id": "r0", "prompt_tokens": [1, 2, 3], "max_new_tokens": 4}]}


def write(path: Path) -> dict:
    return artifacts.write(path, KIND, BODY, source="computed", config={"seed": 0})


def test_a_written_artifact_reads_back_with_its_provenance(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("hello")
    written = artifacts.write(tmp_path / "w.json", KIND, BODY, source="computed", inputs=[source], config={"seed": 0})
    read = artifacts.read(tmp_path / "w.json", KIND)
    assert read == written
    assert read["provenance"]["inputs"] == {str(source): artifacts.sha256_file(source)}
    assert read["provenance"]["config_sha256"] == artifacts.digest({"seed": 0})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.json: no such file"):
        artifacts.read(tmp_path / "gone.json", KIND)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    write(path)
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"w\.json"):
            artifacts.read(path, KIND)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    document = write(path)
    path.write_text(json.dumps({**document, "schema": "llmpq.plan"}))
    with pytest.raises(ArtifactError, match=r"key 'schema' is 'llmpq.plan', expected 'llmpq.workload'"):
        artifacts.read(path, KIND)


def test_a_wrong_type_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    write(path)
    path.write_text(path.read_text().replace('"max_new_tokens": 4', '"max_new_tokens": "four"'))
    with pytest.raises(ArtifactError, match=r"requests\[0\]\.max_new_tokens"):
        artifacts.read(path, KIND)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_on_both_sides(tmp_path: Path, value: float) -> None:
    path = tmp_path / "w.json"
    with pytest.raises((ArtifactError, ValueError)):
        artifacts.write(path, KIND, {**BODY, "note": value}, source="computed")
    assert not path.exists()
    document = write(path)
    path.write_text(json.dumps({**document, "note": value}))
    with pytest.raises(ArtifactError, match=r"not allowed|finite"):
        artifacts.read(path, KIND)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    write(path)
    before = path.read_bytes()

    def crash() -> None:
        with artifacts.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        crash()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.json"]


def test_body_digest_ignores_when_and_where_it_was_made(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.json"), write(tmp_path / "b.json")
    second["provenance"]["host"] = "elsewhere"
    assert artifacts.body_digest(first) == artifacts.body_digest(second)
    assert artifacts.body_digest(first) != artifacts.body_digest({**first, "name": "other"})


def test_dumps_round_trips_and_keeps_one_row_per_line() -> None:
    document = {"rows": [{"a": 1, "b": [1, 2]}, {"a": 2, "b": []}], "empty": {}, "text": "ü\n"}
    text = artifacts.dumps(document)
    assert json.loads(text) == document
    assert '\n   "b": [1, 2]\n' in text
