"""A process that waits for another's heartbeat: it goes on while numbers change, and ends when they stop."""

import threading
import time
from pathlib import Path

import pytest

from llmpq import heartbeat
from llmpq.heartbeat import Heartbeat, watch


def test_silence_is_noticed_and_a_beat_is_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    gone, path = threading.Event(), tmp_path / "heartbeat"
    beating = Heartbeat(path).start()
    watch(path, gone.set, silence_s=1.0)
    assert not gone.wait(2.5)
    beating.stop()
    stopped = time.monotonic()
    assert gone.wait(10)
    assert time.monotonic() - stopped > 0.5


def test_a_file_that_never_comes_is_silence(tmp_path: Path) -> None:
    gone = threading.Event()
    watch(tmp_path / "none", gone.set, silence_s=0.2)
    assert gone.wait(10)


def test_beats_are_not_written_more_often_than_needed(tmp_path: Path) -> None:
    beating = Heartbeat(tmp_path / "heartbeat")
    for _ in range(5):
        beating.beat()
    assert (tmp_path / "heartbeat").read_text(encoding="ascii") == "1\n"
