"""Every kernel against the fp32 product with the very weights its file holds, and rows that do not see their neighbours."""

import pytest
import torch
from quant_cases import ROW_EXACT, fits, inputs, random_weight, stored, stored_weight

from llmpq.errors import LlmpqError
from llmpq.quant.bnb import bitsandbytes
from llmpq.quant.dequantise import dequantise
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.options import OPTIONS

# (relative error of a row's output, in the 2-norm): bf16 has 8 bits of mantissa; activations of 7 bits have a step of 1/63 of the largest,
# those of 8 bits (with AVX-512 VNNI) of 1/127
TOLERANCE = {"float": 1e-6, "fp16": 2e-6, "int8-dynamic": 3e-2, "bnb-int8": 2e-2}
BF16 = 6e-3
SHAPES = [(960, 576), (576, 1536), (48, 128), (16, 192), (2064, 64)]
CASES = [(option, shape) for option in OPTIONS for shape in SHAPES if fits(option, shape)]


def tolerance(option: str) -> float:
    return TOLERANCE.get(OPTIONS[option].kernel, BF16)


@pytest.mark.parametrize(("option", "shape"), CASES, ids=str)
def test_agrees_with_the_dequantised_product(option: str, shape: tuple[int, int]) -> None:
    tensors, bias, x = stored(option, *shape), torch.linspace(-1, 1, shape[0]), inputs(9, shape[1])
    product = x @ dequantise(OPTIONS[option], tensors).t()
    y = make_linear(option, tensors)(x)
    error = (y - product).norm(dim=1) / product.norm(dim=1).clamp_min(1e-30)
    assert float(error.max()) < tolerance(option)
    assert torch.equal(make_linear(option, tensors, bias)(x), y + bias)


def test_the_tolerances_notice_a_wrong_scale() -> None:
    """1 % off in every scale must not pass for bf16 rounding."""
    tensors, x = stored("4", 48, 64), inputs(9, 64)
    product = x @ dequantise(OPTIONS["4"], tensors).t()
    wrong = make_linear("4", {**tensors, "scales": tensors["scales"] * 1.0156})(x)
    assert float(((wrong - product).norm(dim=1) / product.norm(dim=1).clamp_min(1e-30)).max()) > BF16


@pytest.mark.parametrize(("option", "shape"), [case for case in CASES if case[0] in ROW_EXACT], ids=str)
def test_a_row_alone_equals_the_same_row_in_any_batch_bit_for_bit(option: str, shape: tuple[int, int]) -> None:
    linear = make_linear(option, stored(option, *shape), torch.linspace(-1, 1, shape[0]))
    x = inputs(70, shape[1])
    batch = linear(x)
    for size in (1, 2, 3, 7, 8, 9, 16, 33):
        for first in (0, 1, 5, 70 - size):
            assert torch.equal(linear(x[first : first + size]), batch[first : first + size]), (size, first)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_zero_row_gives_the_bias(option: str) -> None:
    bias = torch.linspace(-3, 3, 48)
    linear = make_linear(option, stored(option, 48, 128), bias)
    assert torch.equal(linear(torch.zeros(1, 128))[0], bias)
    assert torch.equal(linear(inputs(4, 128))[1], bias)


@pytest.mark.parametrize("option", OPTIONS)
def test_leading_dimensions_strides_and_empty_input(option: str) -> None:
    linear, x = make_linear(option, stored(option, 48, 128)), inputs(6, 128)
    assert linear(x.view(2, 3, 128)).shape == (2, 3, 48)
    torch.testing.assert_close(linear(x.view(2, 3, 128)).view(6, 48), linear(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(linear(x.t().contiguous().t()), linear(x), rtol=0, atol=1e-4)
    assert not torch.isnan(linear(torch.full((1, 128), 1e-38))).any()


def test_a_larger_neighbour_does_not_coarsen_a_row() -> None:
    """What the usual dynamic operator gets wrong: its one range would round the small row to nothing."""
    linear, small = make_linear("w8a8", stored("w8a8", 48, 64)), inputs(1, 64)
    large = torch.cat([small, small * 1e4])
    assert torch.equal(linear(large)[:1], linear(small))


def test_the_largest_codes_do_not_saturate() -> None:
    """All weights and activations at their outermost codes, the worst case for sums of pairs in 16 bits."""
    tensors = {"codes": torch.full((32, 512), 127, dtype=torch.int8), "scales": torch.ones(32, dtype=torch.bfloat16)}
    for sign in (1.0, -1.0):
        y = make_linear("w8a8", tensors)(torch.full((3, 512), sign))
        torch.testing.assert_close(y, torch.full((3, 32), sign * 127.0 * 512), rtol=1e-5, atol=0)


def test_outlier_columns_are_exact() -> None:
    """A column of huge activations does not touch the others when it is an outlier column."""
    tensors = stored("w8a8-outlier", 64, 128)
    x = inputs(8, 128)
    x[:, tensors["outlier_columns"].long()] *= 1e4
    product = x @ dequantise(OPTIONS["w8a8-outlier"], tensors).t()
    plain = make_linear("w8a8", {"codes": tensors["codes"], "scales": tensors["scales"]})
    assert not bool(tensors["codes"][:, tensors["outlier_columns"].long()].any())
    error = (make_linear("w8a8-outlier", tensors)(x) - product).norm(dim=1)[2:] / product.norm(dim=1)[2:]
    assert float(error.max()) < 1e-4
    rest = x.index_fill(1, tensors["outlier_columns"].long(), 0.0)
    assert torch.isfinite(plain(rest)).all()


def test_bitsandbytes_makes_the_same_of_a_row_alone() -> None:
    """Inputs of 6 and more are multiplied in floating point: the package's own composition of its operators, a row at a time."""
    package, tensors, x = torch.ops.bitsandbytes, stored("bnb-int8", 48, 128), inputs(9, 128)
    assert 0 < int((x.abs() >= 6.0).sum()) < x.numel() // 2
    linear, largest = make_linear("bnb-int8", tensors), tensors["scales"] * 127
    for row in (row for row in x.split(1) if row.any()):
        codes, size, columns = package.int8_vectorwise_quant(row.clone(), 6.0)
        alone, _ = package.int8_mixed_scaled_mm(row, codes, tensors["codes"], size, largest, columns, None)
        torch.testing.assert_close(linear(row), alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_bitsandbytes_files_hold_what_the_package_rounds() -> None:
    functional, weight = bitsandbytes().functional, random_weight(48, 128)
    own = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    torch.testing.assert_close(dequantise(OPTIONS["bnb-nf4"], stored_weight("bnb-nf4", weight)), own, rtol=2**-8, atol=0)  # bf16 scales
    own = functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(weight)[:2])
    torch.testing.assert_close(dequantise(OPTIONS["bnb-int8"], stored_weight("bnb-int8", weight)), own, rtol=1e-4, atol=0)


def test_nf4_without_the_packed_kernel_is_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without bf16 instructions: there the weight is widened and multiplied in fp32."""
    tensors, x = stored("bnb-nf4", 64, 128), inputs(9, 128)
    monkeypatch.setattr(bitsandbytes().functional, "has_avx512bf16", lambda: False)
    linear, product = make_linear("bnb-nf4", tensors), x @ dequantise(OPTIONS["bnb-nf4"], tensors).t()
    assert float(((linear(x) - product).norm(dim=1) / product.norm(dim=1).clamp_min(1e-30)).max()) < 1e-6
    assert all(torch.equal(linear(row), y.unsqueeze(0)) for row, y in zip(x.split(1), linear(x), strict=True))


@pytest.mark.parametrize("option", ["2", "3", "4"])
def test_shapes_the_int4_kernel_cannot_take(option: str) -> None:
    with pytest.raises(LlmpqError, match="output features in multiples of 16, not 24"):
        make_linear(option, stored(option, 24, 64))
    codes = stored(option, 16, 64)["codes"]
    narrow = {"codes": codes[:, : codes.shape[1] // 2], "scales": torch.ones(16, 1, dtype=torch.bfloat16)}
    with pytest.raises(LlmpqError, match="input features in multiples of 64"):
        make_linear(option, narrow)


def test_weights_beyond_fp16_are_refused() -> None:
    weight = random_weight(16, 64)
    weight[3, 5] = 70000.0
    with pytest.raises(LlmpqError, match="70000, beyond fp16's largest number 65504"):
        make_linear("16", {"weight": weight})
    with pytest.raises(LlmpqError, match="fp16"):
        make_linear("16", {"weight": torch.full((16, 64), float("nan"))})


@pytest.mark.parametrize("scale", [0.0, 2.0**126, float("nan")])
def test_three_bit_refuses_scales_it_cannot_quadruple(scale: float) -> None:
    tensors = stored("3", 16, 64)
    with pytest.raises(LlmpqError, match="scale"):
        make_linear("3", {**tensors, "scales": torch.full_like(tensors["scales"], scale)})


@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_of_the_stored_tensors_is_kept(option: str) -> None:
    tensors, x, bias = stored(option, 48, 128), inputs(5, 128), torch.ones(48)
    linear = make_linear(option, tensors, bias)
    before = linear(x)
    for tensor in (*tensors.values(), bias):
        tensor.zero_()
    assert torch.equal(linear(x), before)


@pytest.mark.parametrize("option", ["2", "3", "4"])
def test_negative_scales_serve_too(option: str) -> None:
    """A grid may put its one extra code on the positive side."""
    weight = random_weight(32, 128).abs()
    tensors = stored_weight(option, weight)
    assert bool((tensors["scales"] < 0).any())
    x = inputs(5, 128)
    product = x @ dequantise(OPTIONS[option], tensors).t()
    error = (make_linear(option, tensors)(x) - product).norm(dim=1) / product.norm(dim=1).clamp_min(1e-30)
    assert float(error.max()) < tolerance(option)


def test_sums_of_the_largest_codes_do_not_saturate() -> None:
    """Every product of the same sign and as large as it can be, which is what sums of 16 bits would cut off."""
    outputs, inputs_ = 32, 1024
    tensors = {"codes": torch.full((outputs, inputs_), 127, dtype=torch.int8), "scales": torch.ones(outputs, dtype=torch.bfloat16)}
    x = torch.ones(4, inputs_)
    x[1] = -1
    x[2, ::2] = -1
    expected = torch.tensor([127.0 * inputs_, -127.0 * inputs_, 0.0, 127.0 * inputs_])
    torch.testing.assert_close(make_linear("w8a8", tensors)(x), expected[:, None].expand(-1, outputs), rtol=1e-6, atol=1e-3)
