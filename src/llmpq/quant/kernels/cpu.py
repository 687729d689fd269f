"""Linear operators on the CPU, one class per kernel family; :func:`make_linear` builds the one an option is served with.

Every class takes fp32 input [..., in] and gives fp32 output [..., out]. A bias is always added in fp32 after the product.
What each class keeps in memory is what quant/bytes.py prices.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant.options import WeightOption, weight_option
from llmpq.quant.packing import unpack

FP16_MAX = 65504.0
ACTIVATION_SCALE, ACTIVATION_ZERO = 1 / 63, 64
"""7-bit activations: |code − 64| ≤ 63 can never saturate the 16-bit sums of pairs that AVX2's multiply-add makes."""

_SMALLEST_ROW = 1e-30
"""Floor of a row's largest magnitude, so that a row of zeros divides by something (and gives zeros)."""

_OUTLIER_ROWS = 8
"""Rows that the fp32 product of the outlier columns is padded up to: below that BLAS switches to a matrix-vector kernel with
another order of summation, and a row alone would no longer equal the same row in a batch."""

_LANES = 0x1111111111111111
"""The lowest bit of each of a word's sixteen 4-bit lanes."""

_UNPACK_ROWS = 1024
"""Output rows that the 3-bit kernel unpacks at a time: the workspace stays in the second-level cache."""


class Linear:
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

    def _multiply(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class FloatLinear(Linear):
    """Option ``32``: the plain product, the yardstick of tests."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        weight = tensors["weight"]
        super().__init__(option, weight.shape[0], weight.shape[1], bias)
        self._weight = weight.to(torch.float32, copy=True).contiguous()

    def _multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight)


class HalfLinear(Linear):
    """Option ``16``: fp16 weights, fp32 activations and sums (FBGEMM). Relative error 1e-6 beside the same weights in fp32."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        weight = tensors["weight"]
        super().__init__(option, weight.shape[0], weight.shape[1], bias)
        check_half_range(weight, "a weight")
        with _fbgemm():
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


class Int8Linear(Linear):
    """Option ``8``: int8 weights with one scale per row, bf16 activations and output."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = tensors["codes"]
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        # copies: what a safetensors file hands out may be a view of the file's own pages, and of a whole storage
        self._codes, self._scales = codes.clone().contiguous(), tensors["scales"].to(torch.bfloat16, copy=True)

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._codes, self._scales).float()


class DynamicInt8Linear(Linear):
    """Option ``w8a8``: int8 weights, activations rounded to 7 bits with one scale per token.

    Each row is divided by its largest magnitude and multiplied with a FIXED activation scale, so a row's result does not depend on
    its neighbours in the batch (the usual dynamic operator takes one range over the whole tensor); bit-identical in any batch.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = tensors["codes"]
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        scales, zeros = tensors["scales"].double(), torch.zeros(codes.shape[0], dtype=torch.long)
        with _fbgemm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of its quantised tensors, which are how FBGEMM is reached
            weight = torch._make_per_channel_quantized_tensor(codes.contiguous(), scales, zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)

    def _multiply(self, x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_min_(_SMALLEST_ROW)
        return self._integer(x / largest).mul_(largest)

    def _integer(self, normalised: Tensor) -> Tensor:
        operator = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return operator(normalised, ACTIVATION_SCALE, ACTIVATION_ZERO, self._packed)


class OutlierInt8Linear(DynamicInt8Linear):
    """Option ``w8a8-outlier``: as ``w8a8``, but the columns with the largest activations are multiplied in fp32 beside it.

    LLM.int8's idea (Dettmers et al., 2022, section 3.2) with columns fixed at calibration. Their codes are zero.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        super().__init__(option, tensors, bias)
        self._columns = tensors["outlier_columns"].long()
        self._outlier_weight = tensors["outlier_weight"].float().t().contiguous()

    def _multiply(self, x: Tensor) -> Tensor:
        rest = x.index_fill(1, self._columns, 0.0)
        largest = torch.linalg.vector_norm(rest, torch.inf, dim=1, keepdim=True).clamp_min_(_SMALLEST_ROW)
        y = self._integer(rest.div_(largest)).mul_(largest)
        outliers, rows = x.index_select(1, self._columns), x.shape[0]
        padded = -(-rows // _OUTLIER_ROWS) * _OUTLIER_ROWS
        if padded != rows:
            outliers = F.pad(outliers, (0, 0, 0, padded - rows))
        return y.add_((outliers @ self._outlier_weight)[:rows])


class Int4Linear(Linear):
    """Option ``4``: symmetric int4 codes with a bf16 scale per group, bf16 activations and output."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = unpack(tensors["codes"], 4)
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        _check_int4_shape(option, codes.shape[0], codes.shape[1])
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
        scales = tensors["scales"].to(torch.bfloat16).t()
        self._scales = torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()  # no offset: it centres codes on 8 itself

    def _multiply(self, x: Tensor) -> Tensor:
        mm = torch.ops.aten._weight_int4pack_mm_for_cpu
        return mm(x.bfloat16(), self._packed, self.option.group_size, self._scales).float()


class Int3Linear(Linear):
    """Option ``3``: 3 bits per weight in memory, widened per call to what the int4 kernel reads, a block of rows at a time.

    The int4 kernel's bytes hold two codes; with 3-bit codes bits 3 and 7 of each byte are free. Four equal parts P0 … P3 of a
    block's bytes become three: Si = Pi plus, in those free bits, a third of P3. Widening is then eleven byte-wise operations over
    an eighth of the weights, whatever order the kernel wants its bytes in.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = unpack(tensors["codes"], 3)
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        _check_int4_shape(option, codes.shape[0], codes.shape[1])
        self._blocks: list[tuple[Tensor, int]] = []
        scales, in_order = tensors["scales"].to(torch.bfloat16), []
        _check_scales(scales)
        for first in range(0, self.out_features, _UNPACK_ROWS):
            rows = codes[first : first + _UNPACK_ROWS]
            wide = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rows.to(torch.int32), 1).view(torch.int64).view(4, -1)
            third = wide[3]
            free = torch.stack([(third & _LANES) << 3, (third & (_LANES << 1)) << 2, (third & (_LANES << 2)) << 1])
            self._blocks.append((wide[:3] | free, rows.shape[0]))
            in_order.append(scales[first : first + _UNPACK_ROWS].t().reshape(-1))
        self._scale_bits = torch.cat(in_order).view(torch.int16)

    def _multiply(self, x: Tensor) -> Tensor:
        mm, groups = torch.ops.aten._weight_int4pack_mm_for_cpu, self.in_features // self.option.group_size
        x, y, first = x.bfloat16(), x.new_empty(x.shape[0], self.out_features), 0
        # Each scale s becomes the pair (s, 4 s): codes are centred on 4, the kernel's on 8. Two more in the exponent is 4 s.
        pairs = ((self._scale_bits.to(torch.int32) & 0xFFFF) * 0x10001 + 0x01000000).view(torch.bfloat16)
        for narrow, rows in self._blocks:
            packed = _widen(narrow).view(torch.uint8).view(rows, self.in_features // 2)
            scales = pairs[2 * groups * first : 2 * groups * (first + rows)].view(groups, rows, 2)
            y[:, first : first + rows] = mm(x, packed, self.option.group_size, scales)
            first += rows
        return y


def _widen(narrow: Tensor) -> Tensor:
    """[3, n] words of Si → [4, n] words of P0 … P3. Eight bytes a word; what a shift carries into the next byte is masked away."""
    wide = narrow.new_empty(4, narrow.shape[1])
    torch.bitwise_and(narrow, _LANES * 7, out=wide[:3])
    last, scratch = wide[3], torch.bitwise_right_shift(narrow[0], 3)
    torch.bitwise_and(scratch, _LANES, out=last)
    for row, shift, mask in ((narrow[1], 2, _LANES << 1), (narrow[2], 1, _LANES << 2)):
        last.bitwise_or_(torch.bitwise_right_shift(row, shift, out=scratch).bitwise_and_(mask))
    return wide


_KERNELS: dict[str, Callable[[WeightOption, Mapping[str, Tensor], Tensor | None], Linear]] = {
    "float": FloatLinear,
    "fp16": HalfLinear,
    "int8": Int8Linear,
    "int8-dynamic": DynamicInt8Linear,
    "int4": Int4Linear,
    "int3": Int3Linear,
}


def make_linear(option: str | WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> Linear:
    """Pack one operator for the CPU kernel of ``option``.

    ``tensors`` are the operator's stored tensors: ``weight`` [out, in] for ``32`` and ``16`` (any floating type), else ``codes``
    and ``scales`` (and ``outlier_columns``, ``outlier_weight``); ``bias`` [out]. Nothing of ``tensors`` is kept alive by the result.
    Raises LlmpqError where the kernel cannot take the shape or the values.
    """
    option = weight_option(option) if isinstance(option, str) else option
    return (OutlierInt8Linear if option.outliers else _KERNELS[option.kernel])(option, tensors, bias)


def check_half_range(weight: Tensor, what: str) -> None:
    """Refuse a weight that fp16 cannot hold: FBGEMM would silently saturate it."""
    largest = float(weight.abs().amax()) if weight.numel() else 0.0
    if not largest <= FP16_MAX:
        raise LlmpqError(f"{what} reaches {largest:.6g}, beyond fp16's largest number {FP16_MAX:.0f}: option '16' cannot hold it")


def _check_int4_shape(option: WeightOption, out_features: int, in_features: int) -> None:
    if in_features % option.group_size:
        raise LlmpqError(f"option '{option.name}' needs input features in multiples of {option.group_size} (its group), not {in_features}")
    if out_features % 16:
        raise LlmpqError(f"option '{option.name}': the int4 kernel needs output features in multiples of 16, not {out_features}")


def _check_scales(scales: Tensor) -> None:
    """Four times a scale must be a normal number too: the 3-bit kernel forms it by adding to the exponent."""
    size = scales.float().abs()
    if not bool(((size >= 2.0**-126) & (size < 2.0**125)).all()):
        raise LlmpqError("option '3': every scale must lie between 2^-126 and 2^125; the layer's scales are damaged")


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """Pack with FBGEMM whatever engine is selected; LlmpqError where this torch was built without it."""
    engines = torch.backends.quantized.supported_engines
    if "fbgemm" not in engines:
        raise LlmpqError(f"this build of torch has no FBGEMM (it has {', '.join(engines)}): options 16, w8a8 need an x86-64 build")
    chosen = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = chosen
