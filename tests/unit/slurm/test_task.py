"""One process of a job on nodes: its job, its device, whom it meets."""

import json
import socket
import threading
from pathlib import Path

import pytest

from llmpq.errors import ServeError
from llmpq.slurm.task import meet, own_address, own_device


@pytest.mark.parametrize(("shown", "local", "kept"), [("0,1,3", "2", "3"), ("0,1", "0", "0"), ("2", "1", "2"), ("", "1", "")])
def test_of_several_devices_of_a_node_each_process_keeps_its_own(shown: str, local: str, kept: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": shown, "SLURM_LOCALID": local}
    own_device(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == kept


def test_the_others_find_where_the_first_listens(tmp_path: Path) -> None:
    found: list[dict] = []
    other = threading.Thread(target=lambda: found.append(meet(tmp_path, first=False, wait_s=20)))
    other.start()
    place = meet(tmp_path, first=True, wait_s=20)
    other.join(timeout=20)
    assert found == [{"host": place["host"], "port": place["port"]}]
    with socket.create_connection((found[0]["host"], found[0]["port"]), timeout=5):
        pass
    socket.close(place["listener"])


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=f"{tmp_path}.*is the folder shared by all nodes"):
        meet(tmp_path, first=False, wait_s=0.3)


def test_the_address_is_that_of_the_node_in_slurm() -> None:
    assert own_address({"SLURMD_NODENAME": "localhost"}) == "127.0.0.1"
    assert own_address({"SLURMD_NODENAME": "no.such.node.invalid"}) == socket.gethostbyname(socket.gethostname())


def test_a_place_is_written_whole(tmp_path: Path) -> None:
    place = meet(tmp_path, first=True, wait_s=1)
    assert json.loads((tmp_path / "rendezvous.json").read_text(encoding="utf-8"))["port"] == place["port"]
    socket.close(place["listener"])
