"""The calibration file: per layer and operator what its inputs looked like on the calibration text, through the unquantised model.

One safetensors file. For every operator with inputs X [tokens, in], all fp32: ``layer-003.qkv.hessian`` (upper triangle, row by row,
of Xᵀ D X / tokens, D the tokens' weights: see calibrate), ``.mean``, ``.second_moment`` and ``.max_abs`` per column, and ``.rows``, some
rows of X. It is written layer by layer, so no more than one layer is in memory, and read the same way.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmpq.errors import ArtifactError

SCHEMA, VERSION = "llmpq.calibration", 1
_COLUMNS = ("mean", "second_moment", "max_abs")
_MIRROR_BLOCK = 512


@dataclass(frozen=True)
class InputStatistics:
    """Inputs X of one operator: hessian [in, in] = Xᵀ D X / tokens; per column mean, second moment, largest magnitude; some rows of X."""

    hessian: Tensor
    mean: Tensor
    second_moment: Tensor
    max_abs: Tensor
    rows: Tensor

    @property
    def variance(self) -> Tensor:
        """Var[X] per column [in]."""
        return (self.second_moment - self.mean.square()).clamp_min(0.0)


class CalibrationWriter:
    """Writes the file front to back: all shapes are declared first, then every layer's statistics are added in order."""

    def __init__(self, path: Path, layers: int, inputs: Mapping[str, int], rows: int, info: Mapping[str, Any]) -> None:
        self._path, self._inputs, self._next = path, dict(inputs), 0
        metadata = {"schema": SCHEMA, "version": VERSION, "layers": layers, "inputs": dict(inputs), **info}
        header: dict[str, Any] = {"__metadata__": {"llmpq": json.dumps(metadata, sort_keys=True)}}
        end = 0
        for layer in range(layers):
            for operator, columns in inputs.items():
                for part, shape in _shapes(columns, rows).items():
                    first, end = end, end + 4 * _count(shape)
                    header[f"{_prefix(layer, operator)}{part}"] = {"dtype": "F32", "shape": shape, "data_offsets": [first, end]}
        self._header = json.dumps(header).encode()
        self._header += b" " * (-len(self._header) % 8)  # tensors start at a multiple of eight bytes
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "CalibrationWriter":
        self._file = self._path.open("wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, layer: int, statistics: Mapping[str, InputStatistics]) -> None:
        """Append one layer; layers come in order."""
        if layer != self._next or self._file is None:
            raise ValueError(f"layer {self._next} comes next, not {layer}")
        self._next += 1
        for operator, columns in self._inputs.items():
            found = statistics[operator]
            triangle = [found.hessian[row, row:] for row in range(columns)]
            parts = [*triangle, *(getattr(found, name) for name in _COLUMNS), found.rows]
            for tensor in parts:
                self._file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


class Calibration:
    """A calibration file, read operator by operator. ``info`` is its metadata (layers, inputs, tokens, settings)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = self._read(lambda file: _metadata(self.path, file.metadata()))
        self.layers: int = self.info["layers"]

    @property
    def ids(self) -> list[list[int]]:
        """The calibration windows' token ids [windows][tokens]."""
        try:
            return list(self.info["ids"])
        except KeyError:
            raise ArtifactError(f"{self.path}: holds no token ids; run calibrate again") from None

    def operator(self, layer: int, name: str, *, hessian: bool = True) -> InputStatistics:
        """Statistics of one operator's inputs (``hessian`` False: an empty one, the rest is small and read quickly).

        Raises ArtifactError when the file does not have them or they are not finite.
        """
        columns = self.info["inputs"].get(name)
        if columns is None or not 0 <= layer < self.layers:
            raise ArtifactError(f"{self.path}: has no statistics for operator '{name}' of layer {layer}; calibrate this model again")
        parts = (*_COLUMNS, "rows", *(["hessian"] if hessian else []))
        found = self._read(lambda file: {part: file.get_tensor(f"{_prefix(layer, name)}{part}").clone() for part in parts})
        for part, tensor in found.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{self.path}: {_prefix(layer, name)}{part} holds NaN or infinity; calibrate again")
        square = _unfolded(found["hessian"], columns) if hessian else torch.empty(0, 0)
        return InputStatistics(square, *(found[part] for part in (*_COLUMNS, "rows")))

    def check(self, operators: Mapping[str, tuple[int, int]], layers: int) -> None:
        """Refuse a file of a model with other operators or another number of layers."""
        inputs = {name: shape[1] for name, shape in operators.items()}
        if inputs != self.info["inputs"] or layers != self.layers:
            raise ArtifactError(
                f"{self.path}: calibrated for {self.layers} layers with inputs {self.info['inputs']}, not {layers} with {inputs}"
            )

    def _read(self, what: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return what(file)
        except FileNotFoundError:
            raise ArtifactError(f"{self.path}: no such calibration file; run calibrate") from None
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ArtifactError(f"{self.path}: truncated or damaged ({error}); delete it and calibrate again") from None


def _unfolded(triangle: Tensor, columns: int) -> Tensor:
    """The symmetric matrix of a stored triangle, with no more memory than the two."""
    square, at = torch.empty(columns, columns), 0
    for row in range(columns):
        square[row, row:] = triangle[at : at + columns - row]
        at += columns - row
    for first in range(0, columns, _MIRROR_BLOCK):
        last = first + _MIRROR_BLOCK
        corner = square[first:last, first:last]
        corner.copy_(corner.triu() + corner.triu(1).t())
        square[last:, first:last] = square[first:last, last:].t()
    return square


def _metadata(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        info = json.loads((metadata or {})["llmpq"])
        known = info["schema"] == SCHEMA and info["version"] == VERSION and {"layers", "inputs"} <= info.keys()
    except (KeyError, ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise ArtifactError(f"{path}: not an llmpq calibration file of version {VERSION}; run calibrate again")
    return info


def _prefix(layer: int, operator: str) -> str:
    return f"layer-{layer:03d}.{operator}."


def _shapes(columns: int, rows: int) -> dict[str, list[int]]:
    return {"hessian": [columns * (columns + 1) // 2], **{name: [columns] for name in _COLUMNS}, "rows": [rows, columns]}


def _count(shape: list[int]) -> int:
    return torch.Size(shape).numel()
