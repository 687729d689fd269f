"""Micro-batches: how the resident requests are split for decode, and each decode micro-batch again for prefill."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def balanced(total: int, parts: int) -> tuple[int, ...]:
    """Split ``total`` requests into ``parts`` sizes that differ by at most one, larger ones first."""
    if not 1 <= parts <= total:
        raise ValueError(f"cannot split {total} requests into {parts} micro-batches")
    quotient, larger = divmod(total, parts)
    return (quotient + 1,) * larger + (quotient,) * (parts - larger)


def split(total: int, at_most: int) -> tuple[int, ...]:
    """The fewest balanced micro-batches of at most ``at_most`` requests each."""
    return balanced(total, -(-total // at_most))


@dataclass(frozen=True, order=True)
class MicroBatches:
    """One choice of both micro-batch sizes.

    ``decode`` are the sizes of the decode micro-batches, ``prefill`` those of the prefill chunks in the order they are issued: the
    chunks of every decode micro-batch in turn. ``xi`` and ``eta`` are the largest of each; ``choose(slots, xi, eta)`` gives the
    same object back.
    """

    decode: tuple[int, ...]
    prefill: tuple[int, ...]

    @classmethod
    def choose(cls, slots: int, xi: int, eta: int) -> "MicroBatches":
        """Decode micro-batches of at most ``eta`` requests, each prefilled in chunks of at most ``xi`` (xi <= eta)."""
        decode = split(slots, eta)
        return cls(decode, tuple(size for batch in decode for size in split(batch, xi)))

    @property
    def xi(self) -> int:
        return max(self.prefill)

    @property
    def eta(self) -> int:
        return max(self.decode)

    def sizes(self, phase: str) -> tuple[int, ...]:
        return self.prefill if phase == "prefill" else self.decode

    def largest(self, phase: str) -> int:
        return max(self.sizes(phase))


def default_sizes(slots: int) -> list[int]:
    """Every distinct ceil(slots / m), descending: the sizes worth trying, since any other gives one of the same splits."""
    return sorted({-(-slots // parts) for parts in range(1, slots + 1)}, reverse=True)


def candidates(slots: int, prefill: Iterable[int] | None = None, decode: Iterable[int] | None = None) -> list[MicroBatches]:
    """All distinct (xi, eta) with xi <= eta, from the listed sizes or from ``default_sizes``; larger decode sizes first."""
    etas = sorted(set(default_sizes(slots) if decode is None else decode), reverse=True)
    xis = sorted(set(default_sizes(slots) if prefill is None else prefill), reverse=True)
    found = {MicroBatches.choose(slots, xi, eta): None for eta in etas for xi in xis if xi <= eta}
    return list(found)


def needed_sizes(batches: Sequence[MicroBatches]) -> dict[str, list[int]]:
    """Per phase, every micro-batch size that occurs in ``batches``: the sizes a problem's tables must hold."""
    return {phase: sorted({size for item in batches for size in item.sizes(phase)}) for phase in ("prefill", "decode")}
