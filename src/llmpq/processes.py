"""What a parent of worker processes needs: a rendezvous, signals to select on, and workers that die with it."""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import psutil

from llmpq.errors import LlmpqError

HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def listener(port: int, error: type[LlmpqError], key: str, host: str = HOST) -> Iterator[socket.socket]:
    """The rendezvous socket, bound here so that there is no race for a free port (0) and nothing listens beyond ``host``.

    Its descriptor goes to the worker of rank 0, for TCPStore's ``master_listen_fd``. Raises ``error``, with the configuration's ``key``,
    for a port that is taken or an address that this host does not have.
    """
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(128)
        except OSError as cause:
            if cause.errno == errno.EADDRNOTAVAIL:
                raise error(_not_here(host)) from None
            why = "is in use" if cause.errno == errno.EADDRINUSE else f"cannot be used: {cause.strerror}"
            raise error(f"port {port} on {host} {why}; choose another {key}, or 0 for any free one") from None
        yield bound


def interface_of(address: str, error: type[LlmpqError]) -> str:
    """The name of the network interface (of this process's host or network namespace) that has ``address``; raises ``error``."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    raise error(_not_here(address))


def _not_here(address: str) -> str:
    found = (each.address for addresses in psutil.net_if_addrs().values() for each in addresses if each.family == socket.AF_INET)
    return f"{address} is no address of this host, which has {', '.join(found) or 'none'}"


@contextlib.contextmanager
def signals() -> Iterator[int]:
    """A descriptor on which a SIGTERM or SIGINT can be read (its number); signals stay as they are off the main thread."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        if threading.current_thread() is not threading.main_thread():
            yield read_end
            return
        before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
        before_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        try:
            yield read_end
        finally:
            signal.set_wakeup_fd(before_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        os.close(read_end)
        os.close(write_end)


def heed_signal(wake: int) -> NoReturn:
    """Raise what the signal waiting on ``wake`` asks for: KeyboardInterrupt for SIGINT, SystemExit(128 + number) for others."""
    number = os.read(wake, 1)[0]
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def die_with(parent: int, status: int = 1) -> None:
    """Have the kernel kill this process when its ``parent`` dies, however it dies; end with ``status`` if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(status)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor tells the loop."""
