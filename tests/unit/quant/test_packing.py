"""Codes to bytes and back."""

import pytest
import torch

from llmpq.errors import LlmpqError
from llmpq.quant.packing import pack, packed_columns, unpack


@pytest.mark.parametrize("bits", [3, 4])
def test_every_code_survives(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, packed_columns(64, bits))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits), codes)


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([[0x3, 0xA]]), 4).tolist() == [[0xA3]]
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 3).tolist() == [list(0o07654321.to_bytes(3, "little"))]


def test_a_row_is_one_stream_of_bits_as_in_gptq_checkpoints() -> None:
    """32 codes of 3 bits fill three little-endian 32-bit words with nothing in between."""
    codes = torch.randint(0, 8, (1, 32), generator=torch.Generator().manual_seed(1))
    stream = sum(int(code) << (3 * place) for place, code in enumerate(codes[0]))
    assert pack(codes, 3)[0].tolist() == list(stream.to_bytes(12, "little"))


def test_columns_that_fill_no_whole_bytes() -> None:
    with pytest.raises(LlmpqError, match="multiple of 8"):
        packed_columns(12, 3)
    with pytest.raises(LlmpqError, match="5 bits"):
        pack(torch.zeros(1, 8, dtype=torch.uint8), 5)
