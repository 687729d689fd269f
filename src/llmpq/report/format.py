"""How the report writes numbers: three significant digits, one unit per column, signs only where they mean something."""

import math
import re

MIB = 2**20


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and thousands separated; a dash when there is none.

    >>> number(1234.5), number(44.52), number(0.01234), number(0), number(None)
    ('1,230', '44.5', '0.0123', '0', '–')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def percent(value: float | None, *, signed: bool = False) -> str:
    """``value`` (already in percent) as text: one decimal below ten, none above, with a sign on request."""
    if value is None:
        return "–"
    rounded = f"{value:.1f}" if abs(value) < 9.95 else f"{value:.0f}" if abs(value) < 1000 else number(value)
    if abs(value) < 0.05:
        return "0.0 %"
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{rounded} %".replace("-", "−")


def gap_percent(gap: float | None) -> str:
    """A relative gap (0.0007) as percent with enough digits to tell it from zero; a dash when the plan has no bound."""
    if gap is None:
        return "–"
    if gap <= 1e-9:
        return "0 %"
    return "< 0.001 %" if gap < 1e-5 else f"{number(100 * gap, 2)} %"


def mib(value: float | None) -> str:
    """Bytes as MiB, three significant digits, without the unit."""
    return "–" if value is None else number(value / MIB)


def pair(first: str, second: str) -> str:
    """``measured / predicted`` in one cell; one dash when both are missing."""
    return "–" if first == second == "–" else f"{first} / {second}"


def layer_range(first: int, count: int) -> str:
    """Layers of a stage, counted from 0 as everywhere in llmpq: ``layer 3`` or ``layers 0–17``."""
    return f"layer {first}" if count == 1 else f"layers {first}–{first + count - 1}"


def option_counts(options: list[str]) -> str:
    """How many layers have which option, most bits first: ``4 × 16, 8 × w8a8``."""
    return ", ".join(f"{options.count(option)} × {option}" for option in by_bits(options))


def _bits(option: str) -> int:
    """Weight bits: the first number in an option's name (16, w8a8, w8a8-outlier), 0 without one."""
    found = re.search(r"\d+", option)
    return int(found[0]) if found else 0


def by_bits(options: list[str]) -> list[str]:
    """Distinct options, most weight bits first; of one width the plain one first, then those with more care."""
    return sorted(dict.fromkeys(options), key=lambda option: (-_bits(option), not option.isdigit(), -len(option), option))


def joined(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
