"""An emulated device sleeps in proportion to the processor time its call really used."""

import os
import subprocess
import sys
import time

import pytest

from llmpq.emulation import Emulator, shared_core_quota
from llmpq.errors import ConfigError

CORE = min(os.sched_getaffinity(0))


def burn(seconds: float) -> None:
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def test_a_call_lasts_slowdown_times_its_processor_time() -> None:
    emulator = Emulator(3.0, (CORE,))
    with emulator.call() as call:
        burn(0.02)
    assert 0.02 <= call.cpu_s < 0.05
    assert call.elapsed_s >= 3.0 * call.cpu_s - 1e-4
    assert call.elapsed_s == pytest.approx(call.end_s - call.start_s)


def test_waiting_is_not_work_on_one_core() -> None:
    emulator = Emulator(10.0, (CORE,))
    with emulator.call() as call:
        time.sleep(0.2)
    assert call.cpu_s < 0.02
    assert call.elapsed_s < 1.0  # the 200 ms waited are not multiplied


def test_without_slowdown_nothing_is_slept() -> None:
    with Emulator(1.0, (CORE,)).call() as call:
        burn(0.01)
    assert call.elapsed_s < 1.0


def test_an_error_inside_is_not_delayed() -> None:
    emulator = Emulator(100.0, (CORE,))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="invalid literal"), emulator.call():
        int(str(burn(0.02)))
    assert time.perf_counter() - start < 1.0


def test_pin_binds_all_threads_and_sizes_the_pool() -> None:
    script = (
        "import os, threading, torch\n"
        "from llmpq.emulation import Emulator\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"Emulator(1.0, ({CORE},)).pin()\n"
        "print(torch.get_num_threads(), {tuple(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')})\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == f"1 {{({CORE},)}}"


@pytest.mark.parametrize(
    ("slowdown", "cores", "message"), [(0.5, (), "slowdown is 0.5"), (1.0, (99999,), "99999"), (1.0, (CORE, CORE), "twice")]
)
def test_impossible_devices_are_refused(slowdown: float, cores: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Emulator(slowdown, cores)


def test_shared_cores_are_summed() -> None:
    devices = [{"cores": [0], "slowdown": 1.0}, {"cores": [1], "slowdown": 2.0}, {"cores": [1], "slowdown": 2.0}]
    assert shared_core_quota(devices) == {1: 1.0}
    assert shared_core_quota([{"cores": [1], "slowdown": 2.5}, {"cores": [1], "slowdown": 2.5}]) == {}
    assert shared_core_quota([{"cores": [0], "slowdown": 1.0}]) == {}
