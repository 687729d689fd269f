"""Several hosts on one machine: network namespaces with addresses of their own on a bridge, which can be cut off it and joined again."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmpq.errors import LlmpqError


class HostsMissingError(LlmpqError):
    """Network namespaces cannot be made here."""


@dataclass(frozen=True)
class Host:
    """A namespace: ``address`` on the bridge, ``prefix`` the words before a command that runs there."""

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Take its link down: nothing comes or goes, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def join(self) -> None:
        """The link is up again."""
        _ip("link", "set", self.name, "up")


@dataclass(frozen=True)
class Network:
    """``hosts``, and the ``address`` at which they reach this process's own namespace."""

    address: str
    hosts: Sequence[Host]


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """``count`` hosts, gone again afterwards. Raises HostsMissingError with the reason where there can be none (it takes root)."""
    number = os.getpid()
    bridge, subnet = f"lq{number}", f"10.{128 + number // 250 % 100}.{number % 250}"
    hosts = [Host(f"lq{number}-{index}", f"{subnet}.{index + 2}") for index in range(count)]
    with contextlib.ExitStack() as stack:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            stack.callback(_remove, "link", "del", bridge)
            _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for host in hosts:
                _ip("netns", "add", host.name)
                stack.callback(_remove, "netns", "del", host.name)
                _ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
                stack.callback(_remove, "link", "del", host.name)
                _ip("link", "set", host.name, "master", bridge, "up")
                for words in (
                    ("address", "add", f"{host.address}/24", "dev", "eth0"),
                    ("link", "set", "eth0", "up"),
                    ("link", "set", "lo", "up"),
                ):
                    _ip("-n", host.name, *words)
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise HostsMissingError(f"network namespaces cannot be made here: {said}") from None
        yield Network(f"{subnet}.1", hosts)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


def _remove(*words: str) -> None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        _ip(*words)
