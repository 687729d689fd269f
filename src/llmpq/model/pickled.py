"""pytorch_model.bin, one file or shards → safetensors, so that every later stage reads a layer without the rest and without a pickle.

A .bin is a pickle, which can run anything when it is read. torch.load(weights_only=True) allows tensors and nothing else, and this module
is the only one that calls it. One shard at a time is open, mapped where its format allows (torch ≥ 1.6), so memory holds one at most.
"""

import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmpq.artifacts import dumps
from llmpq.errors import first_line
from llmpq.model.config_file import ModelError
from llmpq.model.weights import INDEX, SINGLE, read_index

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_ZIP = b"PK\x03\x04"
_REASON = re.compile(r"unsupported (?:GLOBAL|class) \S+|Unsupported \w+ \S+|pickle data was truncated", re.I)


def has_pickles(directory: Path) -> bool:
    """Whether ``directory`` holds weights as pytorch_model.bin, whole or in shards."""
    return (directory / PICKLE).is_file() or (directory / PICKLE_INDEX).is_file()


def convert_pickles(source: Path, target: Path) -> None:
    """Write the weights of ``source`` into ``target`` as safetensors, each tensor in its own type, shard by shard under the like name.

    Raises ModelError for a shard that is missing, incomplete, not what the index says, or holds anything but tensors; that is not run.
    """
    index = source / PICKLE_INDEX
    placed = read_index(index) if index.is_file() else None
    files = sorted(set(placed.values())) if placed else [source / PICKLE]
    gone = [path for path in files if not path.is_file()]
    if gone:
        raise ModelError(f"{gone[0]}: no such file, though {PICKLE_INDEX} names it; download the model again")
    written: dict[str, str] = {}
    for path in files:
        tensors = _read(path)
        missing = sorted(name for name, file in (placed or {}).items() if file == path and name not in tensors)
        if missing:
            raise ModelError(f"{path}: has no tensor '{missing[0]}', though {PICKLE_INDEX} says so; download the model again")
        name = SINGLE if placed is None else f"{path.stem.replace('pytorch_model', 'model')}.safetensors"
        save_file(_separate(tensors), target / name, metadata={"format": "pt"})
        written |= dict.fromkeys(tensors, name)
        (target / name).chmod(0o644)
    if placed is not None:
        (target / INDEX).write_text(dumps({"metadata": {}, "weight_map": dict(sorted(written.items()))}), encoding="utf-8")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one .bin by name."""
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = _REASON.search(str(error))
        raise ModelError(
            f"{path}: refused, it holds more than tensors or is damaged ({reason[0] if reason else 'not a plain table of tensors'}); "
            "nothing in it was run. Get the model as safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not a complete file of torch.save ({first_line(error)}); download the model again") from None
    wrong = None if isinstance(found, dict) else f"holds a {type(found).__name__}"
    if wrong is None:
        odd = next((name for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)), None)
        wrong = None if odd is None else f"'{odd}' in it is a {type(found[odd]).__name__}"
    if wrong is not None:
        raise ModelError(f"{path}: {wrong}, expected a table of tensors by name; give the weights of a Hugging Face model")
    return dict(found)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors wants them, contiguous and sharing nothing: copies only of those that do (tied embeddings)."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            seen.add(storage.data_ptr())
    return tensors
