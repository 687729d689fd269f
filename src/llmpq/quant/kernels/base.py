"""What every CPU kernel is: a packed weight that turns fp32 rows into fp32 rows."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor

from llmpq.quant.options import WeightOption

_ALIKE_ROWS = 8
"""Rows that a small fp32 product is padded up to: below that BLAS switches to a matrix-vector kernel with another order of summation, and a
row alone would no longer equal the same row in a batch."""


class Linear(ABC):
    """A weight packed for its kernel: call it with x [..., in] fp32 to get [..., out] fp32."""

    def __init__(self, option: WeightOption, out_features: int, in_features: int, bias: Tensor | None) -> None:
        self.option, self.out_features, self.in_features = option, out_features, in_features
        self.bias = None if bias is None else bias.float().clone()

    def __call__(self, x: Tensor) -> Tensor:
        shape = x.shape
        if shape[-1] != self.in_features:
            raise ValueError(f"this operator takes {self.in_features} inputs, not {shape[-1]}")
        y = self._multiply(x.reshape(-1, self.in_features).contiguous())
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, x: Tensor) -> Tensor:
        """fp32 rows [n, in] → [n, out], without the bias."""


def row_by_row(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, k] @ weight [k, out] in fp32, every row bit for bit the same in any batch."""
    return (_padded(x) @ weight)[: x.shape[0]]


def add_row_by_row(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y [rows, out] + x [rows, k] @ weight [k, out] in fp32, every row bit for bit the same in any batch; ``y`` may be overwritten."""
    return _padded(y).addmm_(_padded(x), weight)[: y.shape[0]]


def _padded(x: Tensor) -> Tensor:
    missing = -x.shape[0] % _ALIKE_ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x
