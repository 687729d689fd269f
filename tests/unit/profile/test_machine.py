"""The look at the machine: others' work is seen, one's own is not taken for others'."""

import subprocess
import sys
import time

import pytest

from llmpq.errors import ConfigError
from llmpq.profile.machine import QuietCheck, identity, quietest_cores
from llmpq.profile.statistics import summary_ms


def test_work_of_another_process_is_noticed() -> None:
    check = QuietCheck()
    spin = "import time\nend = time.process_time() + 0.8\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    found = check.finish()
    assert found["busy_cores_elsewhere"] > 0.3
    assert not found["quiet"]


def test_own_work_is_not_others_work() -> None:
    before = QuietCheck()
    time.sleep(0.5)
    background = before.finish()["busy_cores_elsewhere"]
    check = QuietCheck()
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    assert check.finish()["busy_cores_elsewhere"] < max(background, 0.1) + 0.7


def test_percentiles_are_in_milliseconds() -> None:
    assert summary_ms([0.001 * k for k in range(1, 12)]) == {"p10_ms": 2.0, "p50_ms": 6.0, "p90_ms": 10.0, "repeats": 11}


def test_more_cores_than_there_are() -> None:
    with pytest.raises(ConfigError, match="a device of 4096 cores"):
        quietest_cores(4096)


def test_the_processor_is_identified() -> None:
    found = identity((0,))
    assert found["cores"] == [0]
    assert found["capability"]
