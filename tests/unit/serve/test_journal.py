"""The journal keeps finished requests through kills, torn lines and other plans' files."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmpq.errors import ServeError
from llmpq.serve.journal import Journal

KEY = {"plan_sha256": "p", "requests_sha256": "r"}


def record(name: str, *tokens: int) -> dict[str, Any]:
    return {"id": name, "tokens": list(tokens)}


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1, 2)])
        journal.append([record("b", 3), record("c")])
    said: list[str] = []
    with Journal(tmp_path, KEY, said.append) as journal:
        assert list(journal.finished.values()) == [record("a", 1, 2), record("b", 3), record("c")]
    assert "already finished: 3 of the requests" in said[0]


def test_a_request_is_kept_once(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1)])
        journal.append([record("a", 2)])
        assert journal.finished == {"a": record("a", 1)}
    assert journal.path.read_text().count('"a"') == 1


@pytest.mark.parametrize("kept", range(1, 20))
def test_a_torn_last_line_is_cut_off_and_served_again(tmp_path: Path, kept: int) -> None:
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1), record("b", 22222)])
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    with Journal(tmp_path, KEY) as journal:
        assert list(journal.finished) == ["a"]
        journal.append([record("b", 3)])
    with Journal(tmp_path, KEY) as journal:
        assert journal.finished == {"a": record("a", 1), "b": record("b", 3)}


def test_a_torn_first_line_starts_anew(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as journal:
        pass
    journal.path.write_bytes(journal.path.read_bytes()[:10])
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1)])
    with Journal(tmp_path, KEY) as journal:
        assert list(journal.finished) == ["a"]


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1), record("b", 2)])
    lines = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join([lines[0], lines[1][:-4], lines[2]]) + "\n")
    with pytest.raises(ServeError, match=r"line 2 is damaged; delete the file"):
        Journal(tmp_path, KEY)


def test_another_plans_journal_is_left_alone_and_mentioned(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as first:
        first.append([record("a", 1)])
    said: list[str] = []
    with Journal(tmp_path, {**KEY, "plan_sha256": "other"}, said.append) as second:
        assert second.finished == {}
    assert said == [f"{first.path}: ignored, it belongs to another plan, other requests or other weights"]
    with Journal(tmp_path, KEY) as again:
        assert list(again.finished) == ["a"]


def test_two_runs_cannot_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY), pytest.raises(ServeError, match="in use: another process serves"):
        Journal(tmp_path, KEY)


def test_records_are_on_disk_when_append_returns(tmp_path: Path) -> None:
    """A process that kills itself right after append loses nothing."""
    script = (
        "import os, signal; from pathlib import Path; from llmpq.serve.journal import Journal\n"
        f"journal = Journal(Path({str(tmp_path)!r}), {KEY!r})\n"
        "journal.append([{'id': 'a', 'tokens': [5]}]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with Journal(tmp_path, KEY) as journal:
        assert journal.finished == {"a": record("a", 5)}


def test_a_full_disk_is_one_clear_message_and_nothing_half_written_stays(tmp_path: Path) -> None:
    """The kernel ends a file at RLIMIT_FSIZE as a full disk would: what fits is written, then it refuses."""
    with Journal(tmp_path, KEY) as journal:
        journal.append([record("a", 1)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 20, hard))
        try:
            with pytest.raises(ServeError, match=r"journal-\w+\.jsonl: a finished request could not be kept: File too large"):
                journal.append([record("b", *range(100))])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.finished == {"a": record("a", 1)}
        assert journal.path.read_bytes().endswith(b'{"id":"a","tokens":[1]}\n')
        journal.append([record("c", 3)])
    with Journal(tmp_path, KEY) as journal:
        assert journal.finished == {"a": record("a", 1), "c": record("c", 3)}


def test_numbers_that_are_not_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, KEY) as journal, pytest.raises(ValueError, match="JSON"):
        journal.append([{"id": "a", "tokens": [], "min_margin": float("nan")}])
    assert json.loads(journal.path.read_text().splitlines()[-1])["key"] == KEY
