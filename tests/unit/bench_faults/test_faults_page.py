"""Lines of docs/bench-faults.jsonl and the page made of them."""

from pathlib import Path
from typing import Any

import pytest

from llmpq.bench_faults import record
from llmpq.bench_faults.page import page
from llmpq.bench_faults.record import SOAK, Life, Line
from llmpq.cli import main
from llmpq.errors import LlmpqError


def made(fault: str = "stage killed", **changes: Any) -> Line:
    """A run with two kills that lost nothing."""
    given = {
        "date": "2026-11-23T10:00:00+00:00", "revision": "abc", "code": "c0de", "machine": "a machine", "load": 1.0, "schedule": "barrier",
        "seed": 0, "status": "ok", "injected": 2, "moments": ["loading 0/18", "serving 7/18"], "requests": 18, "lost": 0, "duplicated": 0,
        "wrong": 0, "near_ties": 0, "restarts": 2, "starts": 1, "seconds": 20.0, "reaction_s": 0.5,
    }  # fmt: skip
    return Line(fault=fault, **{**given, **changes})


def test_lines_come_back_as_they_were_stored(tmp_path: Path) -> None:
    lines = [made(), made(SOAK, lives=[Life("command", 900.0, 5e7, 1.0, -1.0, 3.0), Life("stage 0, start 1", 20.0, 2e8)])]
    for line in lines:
        record.append(tmp_path / "lines.jsonl", line)
    assert record.read(tmp_path / "lines.jsonl") == lines


def test_a_line_of_an_unknown_fault_is_refused(tmp_path: Path) -> None:
    record.append(tmp_path / "lines.jsonl", made("meteorite"))
    with pytest.raises(LlmpqError, match=r"lines.jsonl: line 1: key 'fault' is 'meteorite'; known: stage killed"):
        record.read(tmp_path / "lines.jsonl")


def test_the_newest_run_of_a_seed_counts_and_older_code_does_not() -> None:
    old, first = made(code="old", seed=3), made(date="2026-11-23T11:00:00+00:00", wrong=1)
    second, other = made(date="2026-11-23T12:00:00+00:00"), made("port taken", code="old")
    assert record.newest([second, other, first, old]) == [other, second]


def test_the_page_sums_what_was_done_and_what_was_lost() -> None:
    text = page(
        [made(), made(seed=1, injected=3, lost=1, reaction_s=2.0), made(schedule="continuous", wrong=2), made("port taken", injected=1)]
    )
    assert "| stage killed | barrier | 2 | 0–1 | 5 | 36 | 1 | 0 | 0 | 0 | 4 | 2.0 |" in text
    assert "| stage killed | continuous | 1 | 0–0 | 2 | 18 | 0 | 0 | 2 | 0 | 2 | 0.5 |" in text
    assert "| **all** |  | 4 |  | 8 | 72 | 1 | 0 | 2 | 0 | 8 | 2.0 |" in text
    assert "7 kills of a stage (100 wanted), 3 of them while it loaded" in text
    assert "## What did not go as it should\n\nNothing." in text
    assert "## Soak\n\nNot run yet." in text


def test_the_page_says_what_went_wrong_and_who_grew() -> None:
    lives = [Life("command", 900.0, 100 * 2**20, 1024 / 60, 0.0, 2048 / 60), Life("stage 0, start 1", 900.0, 100 * 2**20, 2e4, 1e4, 3e4)]
    text = page([made(status="the command hangs\nfor ever"), made(SOAK, requests=10000, seconds=1230.0, lives=lives)])
    assert "- stage killed, barrier, seed 0: the command hangs for ever" in text
    assert "10000 requests in one run of 20.5 min" in text
    assert "| command | 15.0 | 100.0 | 1.00 | 0.00 to 2.00 | 0.12 % |" in text
    assert "| 103.00 %, not flat |" in text


def test_the_command_renders_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, out = tmp_path / "lines.jsonl", tmp_path / "page.md"
    record.append(results, made())
    paths = ["--results", str(results), "--out", str(out)]
    assert main(["bench-faults", "--render-only", *paths]) == 0
    assert "2 kills of a stage" in out.read_text(encoding="utf-8")
    assert main(["bench-faults", "--faults", "meteorite", *paths]) == 2
    assert "unknown fault 'meteorite'; known: stage killed, " in capsys.readouterr().err
    assert main(["bench-faults", "--soak", "0", *paths]) == 2
    assert "--soak must be more than 0, not 0" in capsys.readouterr().err
