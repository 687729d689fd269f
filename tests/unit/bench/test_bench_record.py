"""Stored lines: what was written is read, the newest counts, a bad line is named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from bench_records import made, textbook_line

from llmpq.bench import record
from llmpq.errors import LlmpqError


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    written = [made(), textbook_line(3, 7.0), made(kind="transfer", solver="none", gap=None, bound_ms=None), made(order_gap=0.01)]
    for line in written:
        record.append(tmp_path / "results.jsonl", line)
    assert record.read(tmp_path / "results.jsonl") == written
    assert len((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_a_missing_file_holds_nothing(tmp_path: Path) -> None:
    assert record.read(tmp_path / "none.jsonl") == []


def test_the_newest_of_each_measurement_counts() -> None:
    old, new = made(seconds=9.0), made(seconds=2.0, date="2026-11-23T10:00:00+00:00", revision="def")
    others = [made(solver="glpk"), made(mode="budget 1"), made(kind="transfer"), textbook_line(0, 1.0), textbook_line(1, 1.0)]
    assert record.newest([old, *others, new]) == [new, *others]
    assert record.newest([new, old]) == [new]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": "5"}, "key 'seconds' must be a number"),
        ({"enumerated": 1.5}, "key 'enumerated' must be a whole number"),
        ({"enumerated": True}, "key 'enumerated' must be a whole number"),
        ({"gap": "none"}, "key 'gap' must be a number or null"),
        ({"kind": "other"}, "key 'kind' is 'other'; kinds are plan, textbook, transfer"),
        ({"date": "yesterday"}, "Invalid isoformat string"),
        ({"surplus": 1}, "unknown key 'surplus'"),
        ({"counts": {"status": "optimal"}}, "key 'counts.seconds' is missing"),
        ({"counts": 3}, "key 'counts' must be an object or null"),
    ],
)
def test_a_bad_line_is_one_error_naming_file_and_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.jsonl"
    record.append(path, made())
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**dataclasses.asdict(made()), **change}) + "\n")
    with pytest.raises(LlmpqError) as caught:
        record.read(path)
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ['{"kind": "plan", "se', "NaN", "[]", '{"seconds": NaN}', "", "{}"])
def test_a_line_that_is_no_measurement_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(LlmpqError, match=r"results\.jsonl: line 1: "):
        record.read(tmp_path / "results.jsonl")


def test_the_committed_results_can_be_read() -> None:
    found = record.read(Path(__file__).parents[3] / "docs" / "bench-plan.jsonl")
    assert {line.kind for line in found} <= set(record.KINDS)
    assert found
