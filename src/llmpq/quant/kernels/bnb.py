"""Linear operators on bitsandbytes' own kernels, whichever it has for the processor: options ``bnb-int8`` and ``bnb-nf4``."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmpq.quant.bnb import INT8_LEVELS, bitsandbytes, nf4_levels
from llmpq.quant.kernels.base import Linear, row_by_row
from llmpq.quant.options import WeightOption

OUTLIER = 6.0
"""Inputs at least this large are multiplied in floating point (LLM.int8, section 3.2: their threshold)."""

_NF4_ROWS = 32
"""Output rows that the packed NF4 kernel works on together."""


class BnbInt8Linear(Linear):
    """Option ``bnb-int8``: LLM.int8, int8 weights and 8-bit activations with a scale per token, large inputs in floating point.

    Every row is treated as the package treats a row alone: which of its inputs are outliers is its own matter. The package takes the
    columns in which any row of the batch has one, so there a row's result depends on its neighbours. Sums of products are integers.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = tensors["codes"]
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        bitsandbytes()
        self._codes, self._largest = codes.clone().contiguous(), tensors["scales"].float() * INT8_LEVELS

    def _multiply(self, x: Tensor) -> Tensor:
        operators = torch.ops.bitsandbytes
        outliers = x.abs() >= OUTLIER
        any_outlier = bool(outliers.any())
        codes, largest, _ = operators.int8_vectorwise_quant(x.masked_fill(outliers, 0.0) if any_outlier else x)
        y = operators.int8_scaled_mm(codes, self._codes, largest, self._largest, dtype=torch.float32)
        return self._add_outliers(y, x, outliers) if any_outlier else y

    def _add_outliers(self, y: Tensor, x: Tensor, outliers: Tensor) -> Tensor:
        """Add x · weight over the marked inputs, one of every row at a time: a row's sum has the same order in any batch."""
        rows, columns = outliers.nonzero(as_tuple=True)
        used, place = columns.unique(return_inverse=True)
        weights = torch.ops.bitsandbytes.int8_vectorwise_dequant(self._codes[:, used].contiguous(), self._largest).t().contiguous()
        counts = outliers.sum(1)
        turn = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        for now in range(int(counts.max())):
            own = (turn == now).nonzero().squeeze(1)
            y[rows[own]] += x[rows[own], columns[own]].unsqueeze(1) * weights[place[own]]
        return y


class BnbNf4Linear(Linear):
    """Option ``bnb-nf4``: places in NF4's table and bf16 scales per block of 64.

    On processors with bf16 instructions the package's packed kernel, bf16 activations and output; elsewhere, and where outputs are no
    multiple of 32, the weight is widened by the package at every call and multiplied in fp32.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        scales = tensors["scales"]
        super().__init__(option, scales.shape[0], scales.shape[1] * option.group_size, bias)
        functional = bitsandbytes().functional
        shape = torch.Size((self.out_features, self.in_features))
        codes = (tensors["codes"] << 4) | (tensors["codes"] >> 4)  # the package has the first of two columns in the upper half
        self._packed = bool(functional.has_avx512bf16()) and self.out_features % _NF4_ROWS == 0
        self._codes, self._scales = codes, scales.to(torch.bfloat16, copy=True)
        if self._packed:
            state = functional.QuantState(
                scales.float(), shape=shape, code=nf4_levels(), blocksize=option.group_size, quant_type="nf4", dtype=torch.bfloat16
            )
            self._codes, state = functional._convert_weight_packed_for_cpu(codes.view(-1, 1), state)
            self._scales = state.absmax

    def _multiply(self, x: Tensor) -> Tensor:
        operators, shape, block = torch.ops.bitsandbytes, (self.out_features, self.in_features), self.option.group_size
        if self._packed:
            return operators.gemv_4bit(x.bfloat16(), self._codes, shape, self._scales, nf4_levels(), block).float()
        wide = operators.dequantize_4bit(self._codes, self._scales.float().view(-1), block, "nf4", shape, torch.float32)
        return row_by_row(x, wide.t())
