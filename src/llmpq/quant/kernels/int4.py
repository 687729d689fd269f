"""Linear operators on torch's int4 CPU kernel: options of 4 bits, and those of 3 and 2 bits, widened to 4 per call.

The kernel multiplies bf16 activations with (code − 8) · scale + offset, one scale and offset (bf16) per group of input columns.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant.kernels.base import Linear
from llmpq.quant.kernels.groups import kernel_group_size
from llmpq.quant.options import WeightOption
from llmpq.quant.packing import unpack

_LANES = 0x1111111111111111
"""The lowest bit of each of a word's sixteen 4-bit lanes."""

_UNPACK_ROWS = 1024
"""Output rows that are widened at a time: the workspace stays in the second-level cache."""


class Int4Linear(Linear):
    """Options of 4 bits: codes and bf16 pairs of scale and offset, bf16 activations and output."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = unpack(tensors["codes"], 4)
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        self._group = _checked_group_size(option, codes.shape[0], codes.shape[1])
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
        scales, offsets = _steps(option, tensors, self.in_features // self._group)
        self._pairs = torch.stack([scales, torch.zeros_like(scales) if offsets is None else offsets], dim=-1).contiguous()

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), self._packed, self._group, self._pairs).float()


class NarrowLinear(Linear):
    """Fewer than 4 bits per weight in memory, widened per call to what the int4 kernel reads, a block of rows at a time.

    The kernel's bytes hold two codes of 4 bits, of which narrower codes leave bits free: a class says how ``parts`` equal parts of a
    block's bytes fold into fewer, whatever order the kernel wants its bytes in, and how they unfold.
    """

    parts: int

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = unpack(tensors["codes"], option.bits)
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        self._group = _checked_group_size(option, codes.shape[0], codes.shape[1])
        scales, offsets = _steps(option, tensors, self.in_features // self._group)
        self._blocks: list[Tensor] = []
        for first in range(0, self.out_features, _UNPACK_ROWS):
            rows = codes[first : first + _UNPACK_ROWS].to(torch.int32)
            wide = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rows, 1).view(torch.int64).view(self.parts, -1)
            self._blocks.append(self._fold(wide))
        # Blocks of rows, each [groups, rows] as the kernel reads it: the bits of a scale, or of a scale and its offset.
        self._scales = _in_blocks(scales)
        self._offsets = None if offsets is None else _in_blocks(offsets)
        # The kernel's codes are centred on 8: what the middle of narrower ones lacks is added to the codes (no lane overflows), or comes
        # out of the offset where that is exact.
        self._lacking = 8 - 2 ** (option.bits - 1)
        self._by_offset = offsets is None and self._lacking.bit_count() == 1
        if self._by_offset:
            _check_scales(option, scales)

    def _multiply(self, x: Tensor) -> Tensor:
        x, y = x.bfloat16(), x.new_empty(x.shape[0], self.out_features)
        for narrow, first, rows, pairs in self._wide_blocks():
            wide = self._unfold(narrow)
            if not self._by_offset:
                wide.add_(_signed(_LANES * self._lacking))
            packed = wide.view(torch.uint8).view(rows, self.in_features // 2)
            y[:, first : first + rows] = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self._group, pairs)
        return y

    def _wide_blocks(self) -> Iterator[tuple[Tensor, int, int, Tensor]]:
        """(folded codes, first row, rows, pairs of scale and offset [groups, rows, 2]) of each block."""
        groups, first = self.in_features // self._group, 0
        offsets = self._offsets if self._offsets is not None else self._scales * (self._lacking if self._by_offset else 0)
        pairs = torch.stack([self._scales, offsets], dim=-1)
        for narrow in self._blocks:
            rows = min(_UNPACK_ROWS, self.out_features - first)
            yield narrow, first, rows, pairs[groups * first : groups * (first + rows)].view(groups, rows, 2)
            first += rows

    @abstractmethod
    def _fold(self, wide: Tensor) -> Tensor:
        """[parts, n] words of lanes whose upper bits are free → fewer words."""

    @abstractmethod
    def _unfold(self, narrow: Tensor) -> Tensor:
        """The inverse of ``_fold``. Eight bytes a word; what a shift carries into the next lane is masked away."""


class Int3Linear(NarrowLinear):
    """Bits 3 of every lane are free: of four parts, P0 … P2 take up a third of P3 each in theirs."""

    parts = 4

    def _fold(self, wide: Tensor) -> Tensor:
        third = wide[3]
        free = torch.stack([(third & _LANES) << 3, (third & (_LANES << 1)) << 2, (third & (_LANES << 2)) << 1])
        return wide[:3] | free

    def _unfold(self, narrow: Tensor) -> Tensor:
        wide = narrow.new_empty(4, narrow.shape[1])
        torch.bitwise_and(narrow, _LANES * 7, out=wide[:3])
        last, scratch = wide[3], torch.bitwise_right_shift(narrow[0], 3)
        torch.bitwise_and(scratch, _LANES, out=last)
        for row, shift, mask in ((narrow[1], 2, _LANES << 1), (narrow[2], 1, _LANES << 2)):
            last.bitwise_or_(torch.bitwise_right_shift(row, shift, out=scratch).bitwise_and_(mask))
        return wide


class Int2Linear(NarrowLinear):
    """Bits 2 and 3 of every lane are free: P0 takes up P1."""

    parts = 2

    def _fold(self, wide: Tensor) -> Tensor:
        return wide[0] | (wide[1] << 2)

    def _unfold(self, narrow: Tensor) -> Tensor:
        wide = narrow.new_empty(2, narrow.shape[0])
        torch.bitwise_and(narrow, _LANES * 3, out=wide[0])
        torch.bitwise_right_shift(narrow, 2, out=wide[1]).bitwise_and_(_LANES * 3)
        return wide


def _steps(option: WeightOption, tensors: Mapping[str, Tensor], groups: int) -> tuple[Tensor, Tensor | None]:
    """bf16 scales and offsets [groups, out]; those of a whole row are repeated for every group of the kernel."""

    def spread(name: str) -> Tensor:
        values = tensors[name].to(torch.bfloat16)
        wide = values if option.group_size else values.view(-1, 1).expand(-1, groups)
        return wide.t().contiguous().clone()

    return spread("scales"), None if option.symmetric else spread("offsets")


def _check_scales(option: WeightOption, scales: Tensor) -> None:
    """The offset, a multiple of its scale, must be a normal number too."""
    size = scales.float().abs()
    if not bool(((size >= 2.0**-126) & (size < 2.0**125)).all()):
        raise LlmpqError(f"option '{option.name}': every scale must lie between 2^-126 and 2^125; the layer's scales are damaged")


def _in_blocks(steps: Tensor) -> Tensor:
    """[groups, out] → flat, block of rows after block of rows."""
    return torch.cat([steps[:, first : first + _UNPACK_ROWS].reshape(-1) for first in range(0, steps.shape[1], _UNPACK_ROWS)])


def _signed(word: int) -> int:
    """The 64-bit word as torch's signed integer."""
    return word - 2**64 if word >= 2**63 else word


def _checked_group_size(option: WeightOption, out_features: int, in_features: int) -> int:
    size = kernel_group_size(option, in_features)
    if out_features % 16:
        raise LlmpqError(f"option '{option.name}': the int4 kernel needs output features in multiples of 16, not {out_features}")
    return size
