"""Stages on several hosts (network namespaces with addresses of their own): they meet there, listen nowhere else, and survive a cut."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serve_cases
from serve_cases import Case, requests
from test_faults import FINISH_EARLY, long_case, some_finished

from llmpq.bench_faults.hosts import HostsMissingError, Network, network
from llmpq.errors import ServeError


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Network]:
    try:
        with network(2) as found:
            yield found
    except HostsMissingError as error:
        pytest.skip(str(error))


def spread(case: Case, hosts: Network, slowdown: float) -> Case:
    """The case with each stage on a host of its own; the launcher stays here."""
    case.cluster = serve_cases.cluster(2, slowdown=slowdown)
    for member, host in zip(case.cluster["members"], hosts.hosts, strict=True):
        member |= {"address": host.address, "prefix": host.prefix}
    case.settings["address"] = hosts.address
    return case


def listening(pid: int) -> set[str]:
    """Local addresses at which anything listens in the network namespace of process ``pid`` (proc(5): net/tcp, state 0A; net/tcp6 too)."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                words = bytes.fromhex(local.split(":")[0])
                address = b"".join(words[first : first + 4][::-1] for first in range(0, len(words), 4))
                found.add(socket.inet_ntop(family, address).removeprefix("::ffff:"))
    return found


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[list[int]]:
    case = long_case(tmp_path_factory.mktemp("one-host"), tiny_checkpoint)
    case.cluster = serve_cases.cluster(2)
    case.serve()
    return [row["tokens"] for row in case.results()]


def test_a_host_that_is_cut_off_and_comes_back_loses_nothing(
    tmp_path: Path, tiny_checkpoint: Path, two_hosts: Network, on_one_host: list[list[int]]
) -> None:
    """The link is down for longer than the time-out, so the run starts again, and has to wait until the host is back."""
    case = spread(long_case(tmp_path, tiny_checkpoint, timeout_s=2, load_timeout_s=60, max_restarts=3), two_hosts, 25.0)
    away = two_hosts.hosts[1]
    listeners: list[set[str]] = []

    def cut_and_join() -> None:
        while not some_finished(case)():
            time.sleep(0.02)
        listeners.extend(listening(process.pid) for process in serve_cases.stage_processes())
        away.cut()
        time.sleep(10)
        away.join()

    meddler = threading.Thread(target=cut_and_join)
    meddler.start()
    try:
        document = case.serve()
    finally:
        meddler.join()
        away.join()
    assert document["restarts"] >= 1
    told = [line for line in case.said if "restart 1 of 3" in line]
    assert "from stage" in told[0], told
    assert "3 of 6 requests are finished and kept in" in told[0]
    assert document["resumed_requests"] == len(FINISH_EARLY)
    assert [row["tokens"] for row in case.results()] == on_one_host
    assert listeners == [{host.address} for host in two_hosts.hosts]
    assert serve_cases.stage_processes() == []


def test_an_address_that_a_host_does_not_have_is_one_clear_error(tmp_path: Path, tiny_checkpoint: Path, two_hosts: Network) -> None:
    case = spread(Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1)), two_hosts, 1.0)
    first, second = two_hosts.hosts
    case.cluster["members"][1]["address"] = first.address
    with pytest.raises(ServeError, match=rf"^stage 1 .*: {first.address} is no address of this host, which has .*{second.address}"):
        case.serve()
    assert serve_cases.stage_processes() == []


def test_a_host_that_is_not_there_fails_with_what_its_command_said(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1))
    case.cluster["members"][1]["prefix"] = ["sh", "-c", "echo no such host >&2; exit 5", "sh"]
    with pytest.raises(ServeError, match=r"(?s)stage 1 .*: the process ended with status 5.*no such host"):
        case.serve()


@pytest.mark.parametrize(
    ("address", "own", "message"),
    [
        ("192.0.2.1", "", "192.0.2.1 is no address of this host, which has .*127.0.0.1"),
        ("here", "", "backend.address is 'here'; expected an IPv4 address such as 127.0.0.1"),
        ("127.0.0.1", "there", r"cluster.members\[d1\].address is 'there'; expected an IPv4 address"),
        ("127.0.0.1", "192.0.2.1", r"cluster.members\[d1\].address is 192.0.2.1, but the stages meet on 127.0.0.1 \(backend.address\)"),
    ],
)
def test_addresses_out_of_reach_are_refused_before_a_process_starts(
    tmp_path: Path, tiny_checkpoint: Path, address: str, own: str, message: str
) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1), address=address)
    case.cluster["members"][1]["address"] = own
    with pytest.raises(ServeError, match=message):
        case.serve()
    assert not (tmp_path / "logs").exists()
