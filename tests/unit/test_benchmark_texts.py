"""WikiText-2, PTB and C4 from copies of their files in the forms in which they come, and what is said where there are none."""

import gzip
import json
from pathlib import Path

import pytest

from llmpq import cli
from llmpq.benchmark_texts import BENCHMARK_TEXTS
from llmpq.config_evaluate import BENCHMARK_TEXTS as CONFIGURED
from llmpq.config_evaluate import PACKAGED_TEXTS as CONFIGURED_PACKAGED
from llmpq.errors import LlmpqError
from llmpq.text import PACKAGED_TEXTS, prepare_text

WIKITEXT = ["", " = Robert Boulter = \n", "", " He plays . \n"]
"""Rows of the data set: a line each with its end, blank ones empty."""


def parquet(path: Path, column: str, rows: list[str]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({column: rows}), path)
    return path


def test_the_configuration_knows_the_texts_that_can_be_prepared() -> None:
    assert tuple(BENCHMARK_TEXTS) == CONFIGURED
    assert tuple(PACKAGED_TEXTS) == CONFIGURED_PACKAGED


def test_wikitext_is_the_same_from_parquet_and_from_the_original_lines(tmp_path: Path) -> None:
    raw = tmp_path / "wiki.test.raw"
    raw.write_text(" \n = Robert Boulter = \n \n He plays . \n", encoding="utf-8")
    expected = "\n\n".join(WIKITEXT)
    for source in (raw, parquet(tmp_path / "test-00000-of-00001.parquet", "text", WIKITEXT)):
        assert prepare_text("wikitext2", tmp_path / "out.txt", source).read_text(encoding="utf-8") == expected


def test_ptb_sentences_are_joined_by_spaces(tmp_path: Path) -> None:
    lines = tmp_path / "ptb.test.txt"
    lines.write_text(" no it was n't black monday \n but while <unk> \n", encoding="utf-8")
    rows = parquet(tmp_path / "0000.parquet", "sentence", ["no it was n't black monday", "but while <unk>"])
    for source in (lines, rows):
        text = prepare_text("ptb", tmp_path / "out.txt", source).read_text(encoding="utf-8")
        assert text == "no it was n't black monday but while <unk>"


def test_c4_is_its_first_1100_documents(tmp_path: Path) -> None:
    path = tmp_path / "c4-validation.00000-of-00008.json.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Document {n}.", "url": "x"}) + "\n" for n in range(1200))
    text = prepare_text("c4", tmp_path / "out.txt", path).read_text(encoding="utf-8")
    assert text.startswith("Document 0. Document 1. ")
    assert text.endswith(" Document 1099.")


def test_offline_the_file_and_the_key_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(LlmpqError) as told:
        prepare_text("c4", tmp_path / "out.txt")
    message = str(told.value)
    assert "HF_HUB_OFFLINE is set" in message
    assert "download https://huggingface.co/datasets/allenai/c4/resolve/main/en/c4-validation.00000-of-00008.json.gz" in message
    assert "set evaluate.sources.c4 to the file" in message
    assert "\n" not in message
    assert not (tmp_path / "out.txt").exists()


def test_what_is_no_copy_of_the_file_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "c4.zip").write_bytes(b"PK")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    other = parquet(tmp_path / "other.parquet", "body", ["x"])
    for source, words in (
        ("gone.jsonl", r"gone\.jsonl: no such file \(key 'evaluate\.sources\.c4'\)"),
        ("c4.zip", r"c4\.zip: key 'evaluate\.sources\.c4' is not one of the formats known \(\.parquet, "),
        ("broken.parquet", r"broken\.parquet: cannot be read as parquet .*key 'evaluate\.sources\.c4' needs a copy of https"),
        ("empty.txt", r"empty\.txt: there is no text in it \(key 'evaluate\.sources\.c4'\)"),
        (other.name, r"other\.parquet: no column 'text' with text \(key 'evaluate\.sources\.c4'\); it has: body"),
    ):
        with pytest.raises(LlmpqError, match=words):
            prepare_text("c4", tmp_path / "out.txt", tmp_path / source)
    with pytest.raises(LlmpqError, match="text 'news' comes from a package"):
        prepare_text("news", tmp_path / "out.txt", other)


def test_the_command_takes_a_local_copy_of_a_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "copy.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    given = ["--source", str(tmp_path / "copy.txt"), "--out", str(tmp_path / "out.txt")]
    assert cli.main(["prepare", "--text", "c4", *given]) == 0
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "One. Two."
    assert cli.main(["prepare", "--model", "opt-13b", *given]) == 2
    assert "--source goes with --text" in capsys.readouterr().err
