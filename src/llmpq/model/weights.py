"""Named tensors of a safetensors checkpoint, one file or several shards, read one at a time and widened to fp32."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmpq.model.config_file import ModelError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """Finds a tensor by the family's short name: the first of ``prefixes`` under which the checkpoint has it (older hub files lack one)."""

    def __init__(self, directory: str | Path, prefixes: Sequence[str]) -> None:
        self.directory = Path(directory)
        self.prefixes = (*prefixes, "")
        self.file_of = self._index()

    def _index(self) -> dict[str, Path]:
        index = self.directory / _INDEX
        if index.is_file():
            try:
                placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{index}: not a safetensors index ({error!r}); prepare or download the model again") from None
            return {name: self.directory / file for name, file in placed.items()}
        single = self.directory / _SINGLE
        if not single.is_file():
            pickled = sorted(self.directory.glob("*.bin"))
            hint = (
                f"; {pickled[0].name} is a pickle, which is never read: convert it to safetensors"
                if pickled
                else "; prepare the model first"
            )
            raise ModelError(f"{single}: no such file{hint}")
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)

    def read(self, name: str) -> Tensor:
        """The tensor as an fp32 copy that keeps no file mapped; raise ModelError naming file and tensor when it cannot be had."""
        full = self.find(name)
        if full is None:
            raise ModelError(
                f"{self.directory}: the checkpoint has no tensor '{self.prefixes[0]}{name}'; it is incomplete or of another family"
            )
        path = self.file_of[full]
        with _opened(path) as file:
            try:
                tensor = file.get_tensor(full)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise ModelError(f"{path}: tensor '{full}' cannot be read ({error}); prepare or download the model again") from None
        if not tensor.is_floating_point():
            raise ModelError(f"{path}: tensor '{full}' is of type {tensor.dtype}, expected floating point weights")
        return tensor.to(torch.float32, copy=True)

    def find(self, name: str) -> str | None:
        """The full name under which the checkpoint holds ``name``."""
        return next((prefix + name for prefix in self.prefixes if prefix + name in self.file_of), None)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, though the checkpoint's index names it; prepare or download the model again") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error}); prepare or download the model again") from None
