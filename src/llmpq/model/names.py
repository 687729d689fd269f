"""What a family calls the tensors of its checkpoints, and the way between them and our fused operators, both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmpq.model.config_file import ModelError
from llmpq.model.spec import ModelSpec

if TYPE_CHECKING:  # whoever only reads a config.json does not load torch
    from torch import Tensor

    from llmpq.model.weights import WeightFiles


@dataclass(frozen=True)
class Names:
    """Module names of a family, without ``.weight`` and ``.bias``.

    ``prefixes``: what may stand before them all, first as transformers writes it (older hub files lack it). ``layer``: what stands before
    the modules of layer {}. ``operators``: for each of ModelSpec.operators the modules whose rows it holds, in order; those in
    ``by_head`` are one module that stores the rows of q, k and v head by head. ``layer_norms`` and ``ends``: our name → the module; an
    end's norm is read where the spec has it.
    """

    prefixes: tuple[str, ...]
    layer: str
    operators: Mapping[str, tuple[str, ...]]
    layer_norms: Mapping[str, str]
    ends: Mapping[str, str]
    by_head: frozenset[str] = field(default_factory=frozenset)

    def read_layer(self, files: "WeightFiles", spec: ModelSpec, index: int) -> "dict[str, Tensor]":
        """Canonical tensors of a decoder layer; ModelError where the checkpoint lacks one."""
        at = self.layer.format(index)
        found: dict[str, Tensor] = {}
        for name, modules in self.operators.items():
            fused = _concatenated(files, name, [at + module for module in modules], bias=spec.has_bias(name))
            found |= {key: _by_part(tensor, spec) for key, tensor in fused.items()} if name in self.by_head else fused
        for name, module in self.layer_norms.items():
            if name in ("attention_norm", "mlp_norm") or spec.qk_norm:
                found |= _read(files, name, at + module, bias=spec.has_bias(name))
        return found

    def read_embedding(self, files: "WeightFiles", spec: ModelSpec) -> "dict[str, Tensor]":
        """Canonical tensors before the first layer."""
        found = _read(files, "embedding", self.ends["embedding"])
        if spec.positions == "learned":
            found |= _read(files, "positions", self.ends["positions"])
        return {**found, **(_read(files, "embedding_norm", self.ends["embedding_norm"], bias=True) if spec.embedding_norm else {})}

    def read_head(self, files: "WeightFiles", spec: ModelSpec) -> "dict[str, Tensor]":
        """Canonical tensors after the last layer: the embedding's table again where the ends are tied."""
        norm = _read(files, "final_norm", self.ends["final_norm"], bias=spec.has_bias("final_norm")) if spec.final_norm else {}
        return {**norm, **_read(files, "head", self.ends["embedding" if spec.tied_embeddings else "head"])}

    def split(self, spec: ModelSpec, operator: str, rows: "Tensor") -> "dict[str, Tensor]":
        """The way back: a tensor whose first dimension are the fused operator's rows → one for each of the checkpoint's modules."""
        modules = self.operators[operator]
        if operator in self.by_head:
            return {modules[0]: _by_head(rows, spec)}
        return dict(zip(modules, rows.split(spec.part_rows(operator)), strict=True)) if len(modules) > 1 else {modules[0]: rows}

    def full(self, module: str, index: int | None = None) -> str:
        """A module's whole name as transformers has it: of a layer with ``index``, else of an end. The head stands outside the prefix."""
        if index is not None:
            return self.prefixes[0] + self.layer.format(index) + module
        return module if module == self.ends["head"] else self.prefixes[0] + module


def _by_part(rows: "Tensor", spec: ModelSpec) -> "Tensor":
    """Rows stored head by head as (q, k, v) → all of q, then k, then v."""
    if rows.shape[0] != 3 * spec.heads * spec.head_dim:
        return rows  # of another model: Checkpoint says so, with name and shapes
    return rows.view(spec.heads, 3, spec.head_dim, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape).contiguous()


def _by_head(rows: "Tensor", spec: ModelSpec) -> "Tensor":
    """The inverse of :func:`_by_part`."""
    return rows.reshape(3, spec.heads, spec.head_dim, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape).contiguous()


def _read(files: "WeightFiles", canonical: str, module: str, *, bias: bool = False) -> "dict[str, Tensor]":
    return {f"{canonical}.{kind}": files.read(f"{module}.{kind}") for kind in ("weight", "bias")[: 1 + bias]}


def _concatenated(files: "WeightFiles", canonical: str, modules: Sequence[str], *, bias: bool) -> "dict[str, Tensor]":
    """``canonical``.weight (and .bias): the rows of ``modules`` one after the other; ModelError naming a module of other columns."""
    import torch

    parts = {kind: [files.read(f"{name}.{kind}") for name in modules] for kind in ("weight", "bias")[: 1 + bias]}
    for kind, rows in parts.items():
        for name, row in zip(modules, rows, strict=True):
            if row.dim() == 0 or row.shape[1:] != rows[0].shape[1:]:
                found, first = ("×".join(map(str, tensor.shape)) or "a single number" for tensor in (row, rows[0]))
                raise ModelError(f"{files.directory}: {name}.{kind} is {found}, which does not go with {modules[0]}.{kind}, {first}")
    return {f"{canonical}.{kind}": rows[0] if len(rows) == 1 else torch.cat(rows) for kind, rows in parts.items()}
