"""The layer files: one safetensors file per (layer, option) with everything a stage needs of that layer; embedding and head alike.

Tensors are named ``<operator>.<part>`` (``weight`` for 32 and 16; ``codes``, ``scales``, and ``offsets`` or ``outlier_columns`` and
``outlier_weight`` where the option has them) and ``<operator>.bias``, ``attention_norm.weight`` … in fp32. The header's metadata has
one key ``llmpq``, a JSON object with layer, option, operators, the quantiser's settings and the sha256 of the tensors, which reading
checks. An end's file has its name for a layer and one operator of that name, for example ``embedding.codes`` and ``positions.weight``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmpq.artifacts import atomic_path
from llmpq.errors import ArtifactError, ConfigError
from llmpq.quant.kernels.cpu import check_half_range
from llmpq.quant.layer_index import HEADER_KEYS, SCHEMA, VERSION, Place, damaged, place_name, read_header
from llmpq.quant.options import weight_option

_PARTS = {"float": {"weight"}, "fp16": {"weight"}, "bf16": {"weight"}}
_OWN_TYPES = {"bnb-int8": {"scales": torch.float32}}
_TYPES = {"scales": torch.bfloat16, "offsets": torch.bfloat16, "outlier_columns": torch.int32, "outlier_weight": torch.float32}


@dataclass
class LayerTensors:
    """One layer or end at one option. ``operators``: name → stored tensors (what ``make_linear`` takes); ``vectors``: all others, fp32."""

    layer: Place
    option: str
    operators: dict[str, dict[str, Tensor]]
    vectors: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)

    def bias(self, operator: str) -> Tensor | None:
        """The operator's bias [out], or None where it has none."""
        return self.vectors.get(f"{operator}.bias")

    def named(self) -> dict[str, Tensor]:
        """All tensors by their name in the file, sorted."""
        parts = {f"{name}.{part}": tensor for name, tensors in self.operators.items() for part, tensor in tensors.items()}
        return dict(sorted({**parts, **self.vectors}.items()))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors, which the file holds beside its header."""
        return sum(tensor.nbytes for tensor in self.named().values())

    def content_sha256(self) -> str:
        """Digest of names, types, shapes and bytes of the tensors: equal weights give an equal digest in any file."""
        return tensors_sha256(self.named())


def tensors_sha256(named: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes of some tensors, in the order of their names."""
    content = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def plain_layer(tensors: Mapping[str, Tensor], operators: Iterable[str], layer: Place, option: str) -> LayerTensors:
    """A layer or end that needs no quantiser (``32``, ``16``, ``bf16``) from canonical checkpoint tensors (Checkpoint.layer …)."""
    known = weight_option(option)
    if known.quantised:
        raise ConfigError(
            f"option '{option}' has to be quantised, only 32, 16 and bf16 come straight from a checkpoint; give its files (--quantised)"
        )
    kept: dict[str, dict[str, Tensor]] = {}
    for name in operators:
        weight = tensors[f"{name}.weight"]
        if option == "16":
            check_half_range(weight, f"{place_name(layer)}{'' if name == layer else f' {name}'}: a weight")
            weight = weight.half()
        elif option == "bf16":
            weight = weight.bfloat16()
        kept[name] = {"weight": weight.contiguous()}
    return LayerTensors(layer, option, kept, layer_vectors(tensors, kept))


def layer_vectors(tensors: Mapping[str, Tensor], operators: Iterable[str]) -> dict[str, Tensor]:
    """Norms and biases of a layer's canonical tensors, fp32: all but the operators' weights."""
    weights = {f"{name}.weight" for name in operators}
    return {name: tensor.float().contiguous() for name, tensor in tensors.items() if name not in weights}


def write_layer(path: str | Path, tensors: LayerTensors) -> str:
    """Write a layer file atomically; returns the content digest. The same layer gives the same bytes on any day."""
    content = tensors.content_sha256()
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        "layer": tensors.layer,
        "option": tensors.option,
        "operators": list(tensors.operators),
        "content_sha256": content,
        **tensors.info,
    }
    with atomic_path(path) as temporary:
        save_file(tensors.named(), temporary, metadata={"llmpq": json.dumps(header, sort_keys=True, allow_nan=False)})
    return content


def read_layer(path: str | Path, layer: Place | None = None, option: str | None = None) -> LayerTensors:
    """Read and check a layer file; ArtifactError naming it when it is missing, truncated, damaged or something else.

    ``layer`` and ``option`` are what the caller expects in it, whatever its name says: another one is an ArtifactError too.
    """
    path = Path(path)
    header = read_header(path)
    for key, wanted in (("layer", layer), ("option", option)):
        if wanted is not None and header[key] != wanted:
            raise ArtifactError(
                f"{path}: key '{key}' of its header is {header[key]!r}, expected {wanted!r}: the file was renamed or copied over another; "
                "delete it and run quantise again"
            )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # clones, so that nothing keeps pages of the file mapped
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from None
    operators: dict[str, dict[str, Tensor]] = {name: {} for name in header["operators"]}
    vectors = {}
    for name, tensor in found.items():
        operator, _, part = name.rpartition(".")
        if operator in operators and part != "bias":
            operators[operator][part] = tensor
        else:
            vectors[name] = tensor
    extra = {key: value for key, value in header.items() if key not in HEADER_KEYS}
    found_layer = LayerTensors(header["layer"], header["option"], operators, vectors, extra)
    _check_parts(path, found_layer)
    if found_layer.content_sha256() != header["content_sha256"]:
        raise damaged(path, "its tensors do not match the digest in its header")
    return found_layer


def _check_parts(path: Path, layer: LayerTensors) -> None:
    option = weight_option(layer.option)
    expected = _PARTS.get(option.kernel, {"codes", "scales"}) | ({"outlier_columns", "outlier_weight"} if option.outliers else set())
    expected |= set() if option.symmetric else {"offsets"}
    for name, tensors in layer.operators.items():
        if tensors.keys() != expected:
            raise ArtifactError(f"{path}: operator {name} holds {sorted(tensors)}, but option '{option.name}' needs {sorted(expected)}")
        types = {**_TYPES, **_OWN_TYPES.get(option.kernel, {})}
        wrong = [part for part, tensor in tensors.items() if tensor.dtype != types.get(part, tensor.dtype)]
        if wrong:
            raise ArtifactError(f"{path}: {name}.{wrong[0]} is {tensors[wrong[0]].dtype}, expected {types[wrong[0]]}")
