"""Symmetric integer grids: choosing scales, and rounding weights to codes.

Scales are rounded to bf16, the type the kernels multiply with, BEFORE any code is chosen; so codes × scales in a file are exactly
the weights that serve.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST_SCALE = 2.0**-100
"""Scale of a row or group that is zero throughout; far inside what bf16 and the 3-bit kernel's 4 × scale can hold."""

_SHRINK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64)
"""Shares of the full range tried for the clipping point of narrow grids (a coarse version of the search in GPTQ's code)."""


@dataclass(frozen=True)
class Grid:
    """Codes ``lowest`` … ``highest`` with one scale per row (``group_size`` 0) or per group of input columns."""

    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        """8-bit codes leave −128 out: the grid is symmetric, and FBGEMM's pairs of products stay clear of saturation."""
        return -127 if self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def scales(self, weights: Tensor, importance: Tensor | None = None) -> Tensor:
        """One scale per row of ``weights`` [rows, columns]: fp32 [rows] that bf16 holds exactly.

        At 8 bits the largest magnitude becomes the outermost code. Narrower grids try clipping points and both signs (a negative
        scale puts the one extra code on the positive side) and keep the least Σ importance · error², ``importance`` [columns].
        """
        low, high = weights.aminmax(dim=1)
        largest = torch.maximum(-low, high)
        if self.bits == 8:
            return to_bf16((largest / self.highest).clamp_min(_SMALLEST_SCALE))
        sign = torch.where(high > -low, -1.0, 1.0)  # the largest magnitude belongs on the longer, negative side of the codes
        best = to_bf16((largest / -self.lowest).clamp_min(_SMALLEST_SCALE) * sign)
        least = self._error(weights, best, importance)
        for shrink in _SHRINK:
            for outermost, direction in ((-self.lowest, sign), (self.highest, sign), (self.highest, -sign)):
                tried = to_bf16((largest * shrink / outermost).clamp_min(_SMALLEST_SCALE) * direction)
                error = self._error(weights, tried, importance)
                better = error < least
                best, least = torch.where(better, tried, best), torch.where(better, error, least)
        return best

    def codes(self, weights: Tensor, scales: Tensor) -> Tensor:
        """Nearest codes, as floats, for ``weights`` [rows, columns] and scales [rows] (or [rows, columns])."""
        scales = scales.unsqueeze(-1) if scales.dim() < weights.dim() else scales
        return torch.round(weights / scales).clamp_(self.lowest, self.highest)

    def _error(self, weights: Tensor, scales: Tensor, importance: Tensor | None) -> Tensor:
        wide = scales.unsqueeze(-1)
        error = torch.round(weights / wide).clamp_(self.lowest, self.highest).mul_(wide).sub_(weights).square_()
        return error.sum(1) if importance is None else error @ importance


def to_bf16(values: Tensor) -> Tensor:
    """fp32 values rounded to what bf16 holds."""
    return values.to(torch.bfloat16).float()
