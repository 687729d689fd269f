"""Named tensors of a safetensors checkpoint, one file or several shards, read one at a time and widened to fp32."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmpq.model.config_file import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """Finds a tensor by the family's short name: the first of ``prefixes`` under which the checkpoint has it (older hub files lack one)."""

    def __init__(self, directory: str | Path, prefixes: Sequence[str]) -> None:
        self.directory = Path(directory)
        self.prefixes = (*prefixes, "")
        self.file_of = self._index()

    def _index(self) -> dict[str, Path]:
        if (self.directory / INDEX).is_file():
            return read_index(self.directory / INDEX)
        single = self.directory / SINGLE
        if not single.is_file():
            pickled = sorted(self.directory.glob("*.bin"))
            hint = f"{pickled[0].name} is a pickle: `llmpq prepare` converts it" if pickled else "prepare the model first"
            raise ModelError(f"{single}: no such file; {hint}")
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)

    def check(self) -> None:
        """Raise ModelError unless every file is there, complete, and has the tensors that the index places in it (no tensor is read)."""
        for path in sorted(set(self.file_of.values())):
            with _opened(path) as file:
                missing = {name for name, place in self.file_of.items() if place == path} - set(file.keys())
            if missing:
                raise ModelError(f"{path}: has no tensor '{min(missing)}', though the index says so; prepare or download the model again")

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


def read_index(path: Path) -> dict[str, Path]:
    """The file of every tensor, from the index of a model in shards; all of them lie beside the index, or it is refused."""
    try:
        placed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        outside = next((file for file in placed.values() if Path(file).name != file), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an index of tensors ({error!r}); prepare or download the model again") from None
    if outside is not None:
        raise ModelError(f"{path}: places a tensor in '{outside}', which is not a file beside it; download the model again")
    return {name: path.parent / file for name, file in placed.items()}


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, though the checkpoint's index names it; prepare or download the model again") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error}); prepare or download the model again") from None
