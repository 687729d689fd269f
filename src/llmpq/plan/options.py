"""What an option's name says: its weight bits, and the precision of the KV cache beside them ("4/kv8": 4-bit weights, 8-bit cache)."""

import re

# The cache precision of an option that does not name one.
DEFAULT_KV = "16"
_CACHE = re.compile(r"/kv(\d+)$")


def kv_precision(option: str) -> str:
    """Precision of the KV cache under ``option``: "8" for "4/kv8", "16" where the name says nothing."""
    found = _CACHE.search(option)
    return found.group(1) if found else DEFAULT_KV


def weight_option(option: str) -> str:
    """The part of the name that is about weights: "4" for "4/kv8"."""
    return _CACHE.sub("", option)


def bits_of(option: str) -> int | None:
    """The first number in the weights' part of the name (8 for "w8a8/kv16"); None where there is none."""
    found = re.search(r"\d+", weight_option(option))
    return int(found.group()) if found else None
