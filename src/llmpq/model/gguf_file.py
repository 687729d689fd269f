"""Reading a GGUF file (version 3): its key-value metadata, and its tensors dequantised to fp32.

The gguf package's own reader takes seconds over the 100,000 strings of a vocabulary; this one takes a fraction of one.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmpq.model.config_file import ModelError

_MAGIC, _VERSION, _DEFAULT_ALIGNMENT = b"GGUF", 3, 32
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _Placed:
    shape: tuple[int, ...]  # outermost dimension first
    kind: int
    offset: int


class GgufFile:
    """``metadata`` by key, and ``tensor(name)``. Raises ModelError when the file is truncated or is not GGUF version 3."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._bytes = np.memmap(self.path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read as GGUF: {error}") from None
        self._view, self._at = self._bytes.data, 0
        try:
            self._parse()
        except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: the GGUF header is truncated or corrupt ({error!r})") from None

    def _parse(self) -> None:
        if bytes(self._view[:4]) != _MAGIC or struct.unpack_from("<I", self._view, 4)[0] != _VERSION:
            raise ModelError(f"{self.path}: not a GGUF file of version {_VERSION}")
        tensors, entries = struct.unpack_from("<QQ", self._view, 8)
        self._at = 24
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        self._placed: dict[str, _Placed] = {}
        for _ in range(tensors):
            name = self._string()
            shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))
            self._placed[name] = _Placed(shape[::-1], self._scalar("<I"), self._scalar("<Q"))
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        self._data = -(-self._at // alignment) * alignment

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._view, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        if self._at + length > len(self._view):
            raise IndexError("a string runs past the end")
        self._at += length
        return str(self._view[self._at - length : self._at], "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        element, count = self._scalar("<I"), self._scalar("<Q")
        read: Callable[[], Any] = self._string if element == _STRING else lambda: self._value(element)
        return [read() for _ in range(count)]

    @property
    def names(self) -> list[str]:
        return list(self._placed)

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as fp32 [outermost … innermost] (for a weight [out, in])."""
        from gguf import GGMLQuantizationType, dequantize
        from gguf.quants import quant_shape_to_byte_shape

        if name not in self._placed:
            raise ModelError(f"{self.path}: there is no tensor '{name}'")
        placed = self._placed[name]
        try:
            kind = GGMLQuantizationType(placed.kind)
            size = np.dtype(np.float32).itemsize if kind is GGMLQuantizationType.F32 else 1
            shape = placed.shape if size > 1 else quant_shape_to_byte_shape(placed.shape, kind)
            start = self._data + placed.offset
            raw = self._bytes[start : start + int(np.prod(shape)) * size].view(np.float32 if size > 1 else np.uint8).reshape(shape)
            return np.asarray(dequantize(raw, kind), np.float32).reshape(placed.shape)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(
                f"{self.path}: tensor '{name}' cannot be read ({error}); the file is truncated or of an unknown type"
            ) from None
