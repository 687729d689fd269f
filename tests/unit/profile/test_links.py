"""Links are timed between real processes, in both directions, with the cluster's delay; a process that fails is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmpq import artifacts
from llmpq.profile.link_worker import one_way
from llmpq.profile.links import LinkError, profile_links

SETTINGS = {"link_bytes": [64, 8_000_000], "repeats": 2}


def cluster(delay_ms: float = 0.0, cores: tuple[int, ...] = (0, 0), count: int = 2) -> dict[str, Any]:
    members = [{"name": f"d{index}", "device": "cpu", "cores": [cores[index]]} for index in range(count)]
    return {"name": "pair", "types": {"cpu": {"source": "emulated"}}, "members": members, "link": {"delay_ms": delay_ms}}


def quietly(_text: str) -> None:
    pass


def test_a_round_trip_without_its_answer_is_a_time_however_late_answers_were_before() -> None:
    assert one_way(1.0, 0.25) == 0.75
    assert one_way(1.0, 3.0) == 0.5


def test_both_directions_and_every_payload(tmp_path: Path) -> None:
    document = profile_links(cluster(), SETTINGS, tmp_path / "links.json", progress=quietly)
    assert artifacts.read(tmp_path / "links.json", "links")["rows"] == document["rows"]
    rows = {(row["from"], row["to"], row["bytes"]): row for row in document["rows"]}
    assert set(rows) == {(a, b, size) for a, b in (("d0", "d1"), ("d1", "d0")) for size in (64, 8_000_000)}
    for row in rows.values():
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"]
        assert row["repeats"] == 20
    assert 0 < document["hand_off"]["p50_ms"] < 1000
    assert rows["d0", "d1", 8_000_000]["p10_ms"] > 2 * rows["d0", "d1", 64]["p10_ms"]


def test_an_emulated_delay_is_a_floor(tmp_path: Path) -> None:
    document = profile_links(cluster(delay_ms=30.0), {**SETTINGS, "link_bytes": [64, 128]}, tmp_path / "links.json", progress=quietly)
    assert document["delay_ms"] == 30.0
    assert all(row["p10_ms"] >= 30.0 for row in document["rows"])


def test_one_device_has_no_links(tmp_path: Path) -> None:
    assert profile_links(cluster(count=1), SETTINGS, tmp_path / "links.json", progress=quietly)["rows"] == []


def test_a_process_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"device d1 ended with code 1(?s:.)*cores \[4095\] are not available"):
        profile_links(cluster(cores=(0, 4095)), SETTINGS, tmp_path / "links.json", progress=quietly)
    assert not (tmp_path / "links.json").exists()


def test_a_payload_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"profile.link_bytes is \[0, 64\]"):
        profile_links(cluster(), {**SETTINGS, "link_bytes": [0, 64]}, tmp_path / "links.json", progress=quietly)


def workers(of: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if "llmpq.profile.link_worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_and_no_file_outlives_the_command_and_nothing_listens_beyond_the_loopback(
    tmp_path: Path, number: int, code: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = (cluster(delay_ms=200.0), {**SETTINGS, "repeats": 50}, str(tmp_path / "links.json"))
    program = f"import json; from llmpq.profile.links import profile_links; profile_links(*json.loads({json.dumps(arguments)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(scratch)})
    try:
        found, listening = [], set()
        until = time.monotonic() + 60
        while not {"127.0.0.1"} <= listening and time.monotonic() < until:
            assert parent.poll() is None
            time.sleep(0.05)
            found = workers(parent.pid)
            rows = [row for process in found for row in process.net_connections("inet") if row.status == psutil.CONN_LISTEN]
            listening |= {row.laddr.ip.removeprefix("::ffff:") for row in rows if len(found) == 2}
        assert listening == {"127.0.0.1"}
        parent.send_signal(number)
        assert parent.wait(timeout=10) == code
        # Orphans that have ended stay in the table until process 1 gets round to them.
        assert [process for process in psutil.wait_procs(found, timeout=30)[1] if alive(process)] == []
    finally:
        parent.kill()
        parent.wait()
    assert len(found) == 2
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "links.json").exists()
