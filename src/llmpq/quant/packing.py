"""Integer codes as the bytes of a layer file, and back.

Codes are unsigned here (symmetric 4 bit: code + 8). Both layouts are one little-endian stream of bits per row, first column in the
lowest bits, which is also how GPTQ checkpoints fill their 32-bit words, so converting needs no re-quantising.
"""

import torch
from torch import Tensor

from llmpq.errors import LlmpqError


def packed_columns(columns: int, bits: int) -> int:
    """Bytes that one row of ``columns`` codes of ``bits`` (2, 3, 4 or 8) takes."""
    if columns * bits % 8 or (bits == 3 and columns % 8):
        raise LlmpqError(f"{columns} columns of {bits} bits do not fill whole bytes; the number of columns must be a multiple of 8")
    return columns * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """[rows, columns] codes in 0 … 2^bits − 1 (any integer type) → uint8 [rows, columns·bits/8]."""
    rows, columns = codes.shape
    packed_columns(columns, bits)
    if bits == 2:
        fours = codes.to(torch.uint8).view(rows, columns // 4, 4)
        return fours[..., 0] | (fours[..., 1] << 2) | (fours[..., 2] << 4) | (fours[..., 3] << 6)
    if bits == 4:
        pairs = codes.to(torch.uint8).view(rows, columns // 2, 2)
        return pairs[..., 0] | (pairs[..., 1] << 4)
    if bits == 3:
        eights = codes.to(torch.int32).view(rows, columns // 8, 8)
        words = (eights << torch.arange(0, 24, 3, dtype=torch.int32)).sum(-1, dtype=torch.int32)
        return torch.stack([(words >> shift) & 255 for shift in (0, 8, 16)], dim=-1).to(torch.uint8).view(rows, -1)
    raise LlmpqError(f"no packed layout for {bits} bits")


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 [rows, bytes] → uint8 codes [rows, bytes·8/bits]."""
    rows = packed.shape[0]
    if bits == 2:
        return torch.stack([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).view(rows, -1)
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], dim=-1).view(rows, -1)
    if bits == 3:
        triples = packed.view(rows, -1, 3).to(torch.int32)
        words = triples[..., 0] | (triples[..., 1] << 8) | (triples[..., 2] << 16)
        return ((words.unsqueeze(-1) >> torch.arange(0, 24, 3, dtype=torch.int32)) & 7).to(torch.uint8).view(rows, -1)
    raise LlmpqError(f"no packed layout for {bits} bits")
