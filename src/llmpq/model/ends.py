"""The two ends of the pipeline: token embedding before the first layer, final norm and language-model head after the last."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from llmpq.model.decoder import Norm, Operator
from llmpq.model.spec import ModelSpec
from llmpq.quant.kernels.table import FloatTable, Table


class Embedding:
    """ids → hidden states; rows of the table (by default ``embedding.weight`` of ``tensors``) are widened after the look-up."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], table: Table | None = None) -> None:
        self.table = FloatTable(tensors["embedding.weight"]) if table is None else table
        self.positions, self.offset = tensors.get("positions.weight"), spec.position_offset
        norm = tensors.get("embedding_norm.weight")
        self.norm = None if norm is None else Norm(spec, norm, tensors.get("embedding_norm.bias"))

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids [rows] or [rows, tokens] at ``positions`` (same shape, or [tokens]) → fp32 [..., hidden]."""
        hidden = self.table.rows(ids)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.offset, self.positions)
        return hidden if self.norm is None else self.norm(hidden)


class Head:
    """hidden states [..., hidden] → logits [..., vocab]."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], operator: Operator) -> None:
        norm = tensors.get("final_norm.weight")
        self.norm = None if norm is None else Norm(spec, norm, tensors.get("final_norm.bias"))
        self.operator = operator

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.operator(hidden if self.norm is None else self.norm(hidden))
