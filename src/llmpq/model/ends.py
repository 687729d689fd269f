"""The two ends of the pipeline: token embedding before the first layer, final norm and language-model head after the last."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from llmpq.model.decoder import Norm, Operator
from llmpq.model.spec import ModelSpec


class Embedding:
    """ids → hidden states; the table is kept in its option's type and widened after the look-up."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        self.table, self.positions, self.offset = tensors["embedding.weight"], tensors.get("positions.weight"), spec.position_offset
        norm = tensors.get("embedding_norm.weight")
        self.norm = None if norm is None else Norm(spec, norm, tensors.get("embedding_norm.bias"))

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids [rows] or [rows, tokens] at ``positions`` (same shape, or [tokens]) → fp32 [..., hidden]."""
        hidden = F.embedding(ids, self.table).float()
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
