"""The byte budget of one emulated device, enforced: nothing is allocated before it has been entered here and found to fit."""

from pathlib import Path

from llmpq.errors import ServeError

KINDS = ("weights", "embedding", "head", "kv", "workspace", "transport")


class Ledger:
    """What one stage holds, in bytes by kind, against the ``budget_bytes`` of its device."""

    def __init__(self, device: str, budget_bytes: int) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.taken = dict.fromkeys(KINDS, 0)

    @property
    def total_bytes(self) -> int:
        """Sum over all kinds."""
        return sum(self.taken.values())

    def reserve(self, kind: str, size: int) -> None:
        """Enter ``size`` bytes of ``kind`` before they are allocated; raises ServeError with the missing bytes when they do not fit."""
        missing = self.total_bytes + size - self.budget_bytes
        if missing > 0:
            held = ", ".join(f"{name} {count:,}" for name, count in self.taken.items() if count) or "nothing yet"
            raise ServeError(
                f"device {self.device}: {size:,} bytes of {kind} do not fit, {missing:,} bytes are missing (budget {self.budget_bytes:,}, "
                f"held: {held}); give the device more memory or plan again"
            )
        self.taken[kind] = self.taken.get(kind, 0) + size


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process in bytes (RssAnon: heap and arenas, without mapped files)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ServeError("/proc/self/status has no RssAnon; llmpq serves on Linux only")
