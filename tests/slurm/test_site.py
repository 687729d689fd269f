"""The site itself: nodes have addresses, types of GPUs and a way to be lost and to come back."""

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest
from slurm_site import NODES, Site, site


def test_a_job_sees_its_own_node_and_devices(site: Site) -> None:
    show = "echo $(hostname) $SLURMD_NODENAME $(ip -br -4 address show eth0 | tr -s ' ' | cut -d' ' -f3) [$CUDA_VISIBLE_DEVICES]"
    for partition, gres, expected in (
        ("v100", "gpu:v100:1", "v100-0 v100-0 10.77.0.13/24 [0]"),
        ("t4", "gpu:t4:2", "t4-0 t4-0 10.77.0.11/24 [0,1]"),
    ):
        assert site.run("srun", "-p", partition, f"--gres={gres}", "sh", "-c", show).strip() == expected


def test_a_lost_node_is_noticed_and_comes_back(site: Site) -> None:
    site.kill_node("t4-1")
    wait_for_state(site, "t4-1", "down")
    site.start_node("t4-1")
    wait_for_state(site, "t4-1", "idle")


def wait_for_state(site: Site, node: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while (found := site.run("sinfo", "-h", "-n", node, "-o", "%T").split()[0].rstrip("*")) != state:
        assert time.monotonic() < deadline, f"{node} is {found}, not {state}"
        time.sleep(0.2)


def test_nothing_is_left_of_a_site(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("other")
    with site(folder) as other:
        assert len(other.run("sinfo", "-h", "-N", "-p", "every").splitlines()) == len(NODES)
        assert len(using(folder)) > len(NODES)
    assert using(folder) == []


def using(folder: Path) -> list[int]:
    """Processes that name a folder in their command line or hold a file of it open."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            opened = [os.readlink(path) for path in Path(f"/proc/{each.pid}/fd").iterdir()]
            if any(str(folder) in text for text in (*each.cmdline(), *opened)):
                found.append(each.pid)
    return [pid for pid in found if pid != os.getpid()]
