"""GPTQ (Frantar et al., ICLR 2023): quantise a weight column by column, letting the columns not yet done make up for the error.

Minimises tr(ΔW H ΔWᵀ), H = E[x xᵀ]: the expected squared error of the operator's output. Rows are independent of each other, so fused
operators (q, k and v; gate and up) are quantised in one go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant.grid import Grid, Steps, to_bf16

_BLOCK = 32
"""Columns whose errors are gathered before they are carried over to the rest in one matrix product (the paper's lazy batch)."""

_INVERSE_BLOCK = 256

_GENTLE = 0.88
"""Clipping of whole rows down to this share of their range is tried apart from clipping without such a limit."""

_SWEEPS = 2
"""How often the steps of all groups are refitted in turn; twice as many gain a few percent more at 2 bits, nothing from 4 on."""


@dataclass
class Quantised:
    """``codes`` int8 [out, in], ``scales`` (and ``offsets`` of an asymmetric grid) fp32 [out, groups] (bf16-exact; one group when there is
    a scale per row); columns that were ``kept`` have code 0 and their weights, error compensation included, in ``kept_weight``
    [out, kept]."""

    codes: Tensor
    scales: Tensor
    kept: Tensor
    kept_weight: Tensor
    offsets: Tensor | None = None

    def dequantised(self, group_size: int) -> Tensor:
        """fp32 [out, in]."""
        out_features, in_features = self.codes.shape
        grouped = self.codes.float().view(out_features, -1, group_size or in_features) * self.scales.unsqueeze(-1)
        if self.offsets is not None:
            grouped = grouped + self.offsets.unsqueeze(-1)
        weight = grouped.view(out_features, in_features)
        weight[:, self.kept] = self.kept_weight
        return weight

    def with_rows_of(self, other: "Quantised", rows: Tensor) -> "Quantised":
        """This weight with the ``rows`` (bool [out]) of another one of the same grid and kept columns."""

        def chosen(own: Tensor, its: Tensor) -> Tensor:
            return torch.where(rows.unsqueeze(1), its, own)

        offsets = None if self.offsets is None or other.offsets is None else chosen(self.offsets, other.offsets)
        kept_weight = chosen(self.kept_weight, other.kept_weight)
        return Quantised(chosen(self.codes, other.codes), chosen(self.scales, other.scales), self.kept, kept_weight, offsets)


@dataclass
class HessianFactor:
    """Order of the columns and the upper Cholesky factor U of the damped inverse Hessian in that order: H⁻¹ = UᵀU."""

    order: Tensor
    upper: Tensor
    dead: Tensor
    quantised: int = field(default=0)


def factorise(hessian: Tensor, *, damping: float, act_order: bool = False, kept: Sequence[int] = ()) -> HessianFactor:
    """Prepare ``hessian`` [in, in] for :func:`gptq`; shared by all grids that keep the same columns.

    ``damping``: share of the mean diagonal added to the diagonal (the paper's 1 %), more, tenfold each time, where that does not
    make it positive definite. ``act_order``: columns in order of falling diagonal. ``kept`` columns come last: they are not
    quantised, so they can take up the errors of all others. Dead columns (diagonal 0: never any input) are reported for zeroing.
    """
    if damping < 0:
        raise LlmpqError(f"GPTQ damping must not be negative, got {damping}")
    diagonal = hessian.diagonal()
    dead, order = diagonal <= 0, torch.arange(len(diagonal))
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    is_kept = torch.zeros(len(diagonal), dtype=torch.bool)
    is_kept[list(kept)] = True
    order = torch.cat((order[~is_kept[order]], order[is_kept[order]]))
    backwards = order.flip(0)
    mean = float(diagonal.mean())
    # fp32 suffices with damping; where it does not, fp64, then more damping
    attempts = [(torch.float32, damping), (torch.float64, damping), *((torch.float64, (damping or 1e-4) * 10**k) for k in (1, 2, 3))]
    for precision, share in attempts:
        work = _reordered(hessian, backwards, precision)
        work.diagonal().masked_fill_(dead[backwards], 1.0).add_(share * mean)
        if _cholesky(work):
            _turn(work)
            _invert_upper(work)
            return HessianFactor(order, work.float(), dead, len(order) - int(is_kept.sum()))
        del work
    raise LlmpqError("GPTQ: the Hessian is not positive definite even with a thousand times the damping; calibrate on more tokens")


def _reordered(hessian: Tensor, order: Tensor, precision: torch.dtype) -> Tensor:
    """A copy with rows and columns in ``order``, and nothing else as large."""
    copied = torch.empty_like(hessian, dtype=precision)
    for first in range(0, len(order), _INVERSE_BLOCK):
        copied[first : first + _INVERSE_BLOCK] = hessian[order[first : first + _INVERSE_BLOCK]][:, order]
    return copied


def _cholesky(work: Tensor) -> bool:
    """Replace ``work`` by its lower Cholesky factor, block by block of columns; False where it has none."""
    size = len(work)
    for first in range(0, size, _INVERSE_BLOCK):
        last = min(first + _INVERSE_BLOCK, size)
        corner, failed = torch.linalg.cholesky_ex(work[first:last, first:last])
        if int(failed):
            return False
        work[first:last, first:last] = corner
        work[first:last, last:] = 0.0
        below = work[last:, first:last]
        below.copy_(torch.linalg.solve_triangular(corner, below.t().contiguous(), upper=False).t())
        for row in range(last, size, _INVERSE_BLOCK):
            end = min(row + _INVERSE_BLOCK, size)
            work[row:end, last:end].addmm_(work[row:end, first:last], work[last:end, first:last].t(), alpha=-1.0)
    return True


def _turn(work: Tensor) -> None:
    """Turn a square matrix by half a turn, in place: read backwards, a lower triangle is an upper one."""
    size = len(work)
    for first in range(0, (size + 1) // 2, _INVERSE_BLOCK):
        last = min(first + _INVERSE_BLOCK, (size + 1) // 2)
        upper = work[first:last].flip(0, 1)
        work[first:last] = work[size - last : size - first].flip(0, 1)
        work[size - last : size - first] = upper


def _invert_upper(work: Tensor) -> None:
    """R⁻¹ of an upper triangular R, in place. With H = R Rᵀ (Cholesky, backwards) and U = R⁻¹, H⁻¹ = UᵀU: no inverse of H is formed.

    Block by block of columns from the right: a column of the inverse needs none of R's columns beyond it, and has nothing below its row.
    """
    starts = range(0, len(work), _INVERSE_BLOCK)
    for first in reversed(starts):
        last = min(first + _INVERSE_BLOCK, len(work))
        columns = work.new_zeros(last, last - first)
        columns[first:].fill_diagonal_(1.0)
        for row in reversed(starts[: first // _INVERSE_BLOCK + 1]):
            end = min(row + _INVERSE_BLOCK, last)
            right = columns[row:end] - work[row:end, end:last] @ columns[end:last]
            columns[row:end] = torch.linalg.solve_triangular(work[row:end, row:end], right, upper=True)
        work[:last, first:last] = columns


@torch.no_grad()
def gptq(weight: Tensor, factor: HessianFactor, grid: Grid, *, static_groups: bool = False) -> Quantised:
    """Quantise ``weight`` fp32 [out, in] on ``grid`` with a factor of its inputs' Hessian.

    Scales of a group are chosen when its first column is reached, from the weights as compensated so far; with ``static_groups``, and
    wherever the columns are reordered, all are chosen beforehand. Deterministic.
    """
    order, upper, count = factor.order, factor.upper, factor.quantised
    out_features, in_features = weight.shape
    group = grid.group_size or in_features
    columns = weight.t()[order].contiguous()  # [in, out]: a column of the weight is contiguous
    columns[factor.dead[order]] = 0.0
    cost = upper.diagonal().square().reciprocal()  # what a squared error of a column costs once the rest has made up for it
    in_sequence = bool((order[:count] == torch.arange(count)).all()) and count == in_features
    dynamic = in_sequence and bool(grid.group_size) and not static_groups
    steps: list[Steps] = [] if dynamic else _static_steps(columns, order, count, cost, grid, group)
    codes = torch.zeros(in_features, out_features, dtype=torch.int8)
    size = min(_BLOCK, group)  # no block reaches over the start of a group, where scales are chosen
    for first in range(0, count, size):
        last = min(first + size, count)
        if dynamic and first % group == 0:
            steps.append(grid.steps(columns[first : first + group].t(), cost[first : first + group]))
        block, errors = columns[first:last], torch.empty(last - first, out_features)
        for i in range(last - first):
            place = first + i
            own = steps[int(order[place]) // group]
            column = block[i] if own.offsets is None else block[i] - own.offsets
            code = torch.div(column, own.scales).round_().clamp_(grid.lowest, grid.highest)
            torch.sub(column, code * own.scales, out=errors[i]).div_(upper[place, place])
            codes[place] = code
            if i + 1 < last - first:
                block[i + 1 :].addr_(upper[place, place + 1 : last], errors[i], alpha=-1.0)
        columns[last:].addmm_(upper[first:last, last:].t(), errors, alpha=-1.0)
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    kept = order[count:].sort()
    scales = torch.stack([own.scales for own in steps], dim=1)
    offsets = None if grid.symmetric else torch.stack([own.offsets for own in steps if own.offsets is not None], dim=1)
    return Quantised(in_place.t().contiguous(), scales, kept.values, columns[count:][kept.indices].t().contiguous(), offsets)


def _static_steps(columns: Tensor, order: Tensor, count: int, cost: Tensor, grid: Grid, group: int) -> list[Steps]:
    """Scales (and offsets) [out] of every group of the uncompensated weights; kept columns do not count."""
    in_features, out_features = columns.shape
    plain, weights = torch.zeros(in_features, out_features), torch.zeros(in_features)
    plain[order[:count]] = columns[:count]
    weights[order[:count]] = cost[:count]
    chunks = range(0, in_features, group)
    return [grid.steps(plain[at : at + group].t(), weights[at : at + group]) for at in chunks]


@torch.no_grad()
def refit(weight: Tensor, found: Quantised, hessian: Tensor, grid: Grid) -> Quantised:
    """The same codes with the scales and offsets that fit them best, group by group, where that lessens tr(ΔW H ΔWᵀ) of a row.

    Steps are chosen before a group's columns are rounded, and weights move meanwhile: where one column outweighs all others (an attention
    sink's, thousands of times) steps fitted afterwards can halve the loss. For codes c of a group and the gradient R = ΔW H in its columns:
    [c H cᵀ, c H 1ᵀ; c H 1ᵀ, 1 H 1ᵀ] [ds; do] = -[R cᵀ; R 1ᵀ], the scale rounded to bf16 before the offset is solved for.
    """
    group = grid.group_size or weight.shape[1]
    error = found.dequantised(grid.group_size) - weight
    scales, offsets = found.scales.clone(), None if found.offsets is None else found.offsets.clone()
    rounded = torch.ones(weight.shape[1]).index_fill_(0, found.kept, 0.0)
    chunks = [slice(first, first + group) for first in range(0, weight.shape[1], group)]
    for _ in range(_SWEEPS if grid.group_size else 1):
        for place, own in enumerate(chunks):
            codes, ones = found.codes[:, own].float(), rounded[own]
            old = Steps(scales[:, place], None if offsets is None else offsets[:, place])
            new = _fitted(codes, ones, error @ hessian[:, own], hessian[own, own], old)
            error[:, own] += (new.scales - old.scales).unsqueeze(1) * codes
            if offsets is not None and old.offsets is not None and new.offsets is not None:
                error[:, own] += (new.offsets - old.offsets).unsqueeze(1) * ones
                offsets[:, place] = new.offsets
            scales[:, place] = new.scales
    return Quantised(found.codes, scales, found.kept, found.kept_weight, offsets)


def _fitted(codes: Tensor, ones: Tensor, gradient: Tensor, hessian: Tensor, old: Steps) -> Steps:
    """The best steps [out] of one group for its ``codes`` [out, group], or the ``old`` ones of rows that they would not help.

    ``ones`` [group]: 0 in columns that are kept; ``gradient`` [out, group] = ΔW H there; ``hessian`` [group, group].
    """
    weighted = codes @ hessian
    curvature, slope = (weighted * codes).sum(1), (gradient * codes).sum(1)
    if old.offsets is None:
        scales = to_bf16(old.scales - slope / curvature)
        step = scales - old.scales
        gain = 2 * step * slope + step.square() * curvature
    else:
        across, level, flat = weighted @ ones, gradient @ ones, ones @ hessian @ ones
        scales = to_bf16(old.scales + (across * level - flat * slope) / (curvature * flat - across.square()))
        step = scales - old.scales
        shift = to_bf16(old.offsets - (level + across * step) / flat) - old.offsets
        gain = 2 * (step * slope + shift * level) + step.square() * curvature + 2 * step * shift * across + shift.square() * flat
    # a scale that changes by more than half has no meaning for its codes: the group hardly matters to any output
    better = (gain < 0) & ((scales / old.scales - 1).abs() <= 0.5)
    offsets = None if old.offsets is None else torch.where(better, to_bf16(old.offsets + shift), old.offsets)
    return Steps(torch.where(better, scales, old.scales), offsets)


def gptq_refitted(weight: Tensor, factor: HessianFactor, hessian: Tensor, grid: Grid, *, static_groups: bool = False) -> Quantised:
    """``gptq``, then ``refit``: what layer files hold. ``factor`` is that of ``hessian``.

    A narrow asymmetric grid for whole rows is clipped in two ways, and every row keeps the one of less loss: the point that is best for
    the weights as they are can be far off once they make up for each other's errors (1 row in 576 of one operator, 2 % of its loss).
    """
    found = refit(weight, gptq(weight, factor, grid, static_groups=static_groups), hessian, grid)
    if grid.symmetric or grid.group_size or grid.bits == 8:
        return found
    gentle = replace(grid, least_range=_GENTLE)
    other = refit(weight, gptq(weight, factor, gentle, static_groups=static_groups), hessian, gentle)
    better = _row_losses(weight, other.dequantised(0), hessian) < _row_losses(weight, found.dequantised(0), hessian)
    return found.with_rows_of(other, better)


def _row_losses(weight: Tensor, approximation: Tensor, hessian: Tensor) -> Tensor:
    error = approximation - weight
    return ((error @ hessian) * error).sum(1)


def output_loss(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ): mean over tokens of the squared error of the operator's output, summed over its rows."""
    return float(_row_losses(weight, approximation, hessian).sum(dtype=torch.float64))
