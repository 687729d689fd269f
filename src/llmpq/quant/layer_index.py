"""Finding the files of layers and ends and reading what their headers say, without their tensors and without torch."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmpq.errors import ArtifactError
from llmpq.quant.options import OPTIONS, known_options, weight_option

Folders = str | Path | Sequence[str | Path]
Place = int | str
"""Where weights belong: the number of a decoder layer, or ``embedding`` or ``head``."""

SCHEMA, VERSION = "llmpq.layer", 1
HEADER_KEYS = {"schema", "version", "layer", "option", "operators", "content_sha256"}


def layer_file_name(place: Place, option: str) -> str:
    """``layer-003.w8a8.safetensors``, ``head.8.safetensors``."""
    return f"{place if isinstance(place, str) else f'layer-{place:03d}'}.{option}.safetensors"


def place_name(place: Place) -> str:
    """``layer 3``, ``the head``."""
    return f"the {place}" if isinstance(place, str) else f"layer {place}"


def read_header(path: str | Path) -> dict[str, Any]:
    """The metadata of a file of a layer or end (layer, option, operators, content_sha256, settings) without its tensors."""
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such layer file; run quantise for this layer and option") from None
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from None
    try:
        header = json.loads(metadata["llmpq"])
        known = header["schema"] == SCHEMA and header["version"] == VERSION and header.keys() >= HEADER_KEYS
    except (KeyError, ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise ArtifactError(f"{path}: a safetensors file, but not an llmpq layer file of version {VERSION}; run quantise again")
    if header["option"] not in OPTIONS:
        raise ArtifactError(f"{path}: option '{header['option']}' is unknown here; known are {known_options()}")
    return header


def folder_list(folders: Folders) -> list[Path]:
    """One folder or several, as paths."""
    return [Path(folders)] if isinstance(folders, (str, Path)) else [Path(folder) for folder in folders]


def find_layer_file(folders: Folders, place: Place, option: str) -> Path:
    """The file in ``folders`` (a folder of groups, a group, or several); ArtifactError when there is none, or more than one."""
    roots, name = folder_list(folders), layer_file_name(place, weight_option(option).name)
    where = ", ".join(map(str, roots))
    found = []
    for root in roots:
        groups = (path for path in root.glob(f"*/{name}") if not path.parent.name.startswith(".") and path.parent.suffix != ".partial")
        found += [path for path in (root / name, *sorted(groups)) if path.is_file()]
    if not found:
        known = ", or name the folder of quantised ends as well" if isinstance(place, str) else ""
        raise ArtifactError(f"{where}: no file {name} in it or in its groups; quantise {place_name(place)} at option '{option}'{known}")
    if len(found) > 1:
        raise ArtifactError(
            f"{where}: {place_name(place)} at option '{option}' is there twice, {found[0]} and {found[1]}; "
            "remove one, or name the groups to use"
        )
    return found[0]


def layers_digest(paths: Sequence[str | Path]) -> str:
    """One digest of several files: which layer or end is where, at which option, with which weights (headers are read, not tensors)."""
    headers = [read_header(path) for path in paths]
    return combined_digest(layer_line(header["layer"], header["option"], header["content_sha256"]) for header in headers)


def layer_line(place: Place, option: str, content_sha256: str) -> str:
    """What a digest of a model says about one of its layers or ends."""
    return f"{place if isinstance(place, str) else f'layer {place}'} {option} {content_sha256}"


def combined_digest(lines: Iterable[str]) -> str:
    """One digest of the ``layer_line``s of a model, in order."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def damaged(path: Path, why: str) -> ArtifactError:
    """The error for a layer file that cannot be what was written."""
    return ArtifactError(f"{path}: truncated or damaged ({why}); delete it and run quantise again")
