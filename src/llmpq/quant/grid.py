"""Integer grids, symmetric or not: choosing scales and offsets, and rounding weights to codes.

A weight is code × scale, plus an offset where the grid is asymmetric. Scales and offsets are rounded to bf16, the type the kernels
multiply with, BEFORE any code is chosen; so what a file holds is exactly the weight that serves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmpq.quant.options import WeightOption

_SMALLEST_SCALE = 2.0**-100
"""Scale of a row or group that is zero throughout; far inside what bf16 can hold."""

_SHRINK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64)
"""Shares of the full range tried for the clipping point of narrow grids (a coarse version of the search in GPTQ's code)."""

_OFFSET_ROUNDING = 2.0**-7
"""An offset's bf16 rounding, relative: the scale is no smaller than that share of it, so that codes can make up for it."""


@dataclass(frozen=True)
class Steps:
    """Scales and, where the grid is asymmetric, offsets: fp32 that bf16 holds exactly, of any equal shape."""

    scales: Tensor
    offsets: Tensor | None = None


@dataclass(frozen=True)
class Grid:
    """Codes ``lowest`` … ``highest`` with one scale per row (``group_size`` 0) or per group of input columns.

    ``least_range``: no clipping point below that share of the full range is tried.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    least_range: float = _SHRINK[-1]

    @classmethod
    def of(cls, option: WeightOption) -> "Grid":
        return cls(option.bits, option.group_size, option.symmetric)

    @property
    def lowest(self) -> int:
        """Symmetric 8-bit codes leave −128 out, so that FBGEMM's pairs of products stay clear of saturation."""
        return -127 if self.bits == 8 and self.symmetric else -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def shrinks(self) -> list[float]:
        """The shares of the full range that are tried."""
        return [shrink for shrink in _SHRINK if shrink >= self.least_range] if self.bits < 8 else [1.0]

    def steps(self, weights: Tensor, importance: Tensor | None = None) -> Steps:
        """Scales (and offsets) [rows] for ``weights`` [rows, columns].

        At 8 bits the outermost weights become the outermost codes. Narrower grids try clipping points and keep the least
        Σ importance · error², ``importance`` [columns].
        """
        return self._symmetric(weights, importance) if self.symmetric else self._asymmetric(weights, importance)

    def codes(self, weights: Tensor, steps: Steps) -> Tensor:
        """Nearest codes, as floats, for ``weights`` [rows, columns] and steps [rows] (or [rows, columns])."""
        wide = weights.dim() - steps.scales.dim()
        scales = steps.scales.unsqueeze(-1) if wide else steps.scales
        if steps.offsets is not None:
            weights = weights - (steps.offsets.unsqueeze(-1) if wide else steps.offsets)
        return torch.round(weights / scales).clamp_(self.lowest, self.highest)

    def _symmetric(self, weights: Tensor, importance: Tensor | None) -> Steps:
        """Narrow grids try both signs: a negative scale puts the one extra code on the positive side."""
        low, high = weights.aminmax(dim=1)
        largest = torch.maximum(-low, high)
        if self.bits == 8:
            return Steps(to_bf16((largest / self.highest).clamp_min(_SMALLEST_SCALE)))
        sign = torch.where(high > -low, -1.0, 1.0)  # the largest magnitude belongs on the longer, negative side of the codes
        best = to_bf16((largest / -self.lowest).clamp_min(_SMALLEST_SCALE) * sign)
        least = self._error(weights, best, importance)
        for shrink in self.shrinks:
            for outermost, direction in ((-self.lowest, sign), (self.highest, sign), (self.highest, -sign)):
                tried = to_bf16((largest * shrink / outermost).clamp_min(_SMALLEST_SCALE) * direction)
                error = self._error(weights, tried, importance)
                better = error < least
                best, least = torch.where(better, tried, best), torch.where(better, error, least)
        return Steps(best)

    def _asymmetric(self, weights: Tensor, importance: Tensor | None) -> Steps:
        """The range of the weights, or a share of it about its middle; the codes' own middle lies half a code below zero."""
        low, high = weights.aminmax(dim=1)
        middle, span = (low + high) / 2, high - low
        floor = (middle.abs() * _OFFSET_ROUNDING).clamp_min(_SMALLEST_SCALE)
        best: Steps | None = None
        least = torch.empty(0)
        for shrink in self.shrinks:
            scales = to_bf16(torch.maximum(span * shrink / (self.highest - self.lowest), floor))
            offsets = to_bf16(middle + scales / 2)
            if best is None or best.offsets is None:
                best, least = Steps(scales, offsets), self._error(weights - offsets.unsqueeze(-1), scales, importance)
                continue
            error = self._error(weights - offsets.unsqueeze(-1), scales, importance)
            better = error < least
            best = Steps(torch.where(better, scales, best.scales), torch.where(better, offsets, best.offsets))
            least = torch.where(better, error, least)
        assert best is not None
        return best

    def _error(self, weights: Tensor, scales: Tensor, importance: Tensor | None) -> Tensor:
        wide = scales.unsqueeze(-1)
        error = torch.round(weights / wide).clamp_(self.lowest, self.highest).mul_(wide).sub_(weights).square_()
        return error.sum(1) if importance is None else error @ importance


def to_bf16(values: Tensor) -> Tensor:
    """fp32 values rounded to what bf16 holds."""
    return values.to(torch.bfloat16).float()
