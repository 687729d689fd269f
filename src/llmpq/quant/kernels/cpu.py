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
from llmpq.native import available, kernels
from llmpq.quant.bytes import instruction_set
from llmpq.quant.kernels.base import Linear, add_row_by_row
from llmpq.quant.kernels.bnb import BnbInt8Linear, BnbNf4Linear
from llmpq.quant.kernels.int4 import Int2Linear, Int3Linear, Int4Linear
from llmpq.quant.options import WeightOption, weight_option

FP16_MAX = 65504.0
ACTIVATION_LEVELS = 127 if instruction_set() == "avx512_vnni" else 63
"""Largest code of an activation, positive or negative: 8 bits with AVX-512 VNNI, else 7. AVX2's multiply-add makes 16-bit sums of pairs
first, which 8 bits can saturate and 7 cannot."""

_PACKED_FOR_ROWS = 16
"""oneDNN lays a weight out for a number of rows; others are served from the same layout."""

_SMALLEST_ROW = 1e-30
"""Floor of a row's largest magnitude, so that a row of zeros divides by something (and gives zeros)."""


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


class BfloatLinear(Linear):
    """Option ``bf16``: bf16 weights, activations and output, fp32 sums (oneDNN). Twice the speed of ``16`` with AVX-512 BF16."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        weight = tensors["weight"].to(torch.bfloat16, copy=True).contiguous()
        super().__init__(option, weight.shape[0], weight.shape[1], bias)
        self._packs = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS) if self._packs else weight

    def _multiply(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        x = x.bfloat16()
        if rows == 1:  # a row alone would go to a matrix-vector kernel, with another order of summation
            x = x.expand(2, -1).contiguous()
        y = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "") if self._packs else F.linear(x, self._weight)
        return y[:rows].float()


class Int8Linear(Linear):
    """Option ``8``: int8 weights with one scale per row, bf16 activations and output."""

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = tensors["codes"]
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        # copies: what a safetensors file hands out may be a view of the file's own pages, and of a whole storage
        self._codes, self._scales = codes.clone().contiguous(), tensors["scales"].to(torch.bfloat16, copy=True)

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows [..., in] of the weight, fp32, by their numbers [...]: the codes are kept as they are read, so they can be looked up too."""
        return F.embedding(numbers, self._codes).float().mul_(self._scales[numbers].float().unsqueeze(-1))

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether this is the operator of these stored tensors."""
        return torch.equal(self._codes, tensors["codes"]) and torch.equal(self._scales, tensors["scales"])

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._codes, self._scales).float()


class DynamicInt8Linear(Linear):
    """Option ``w8a8``: int8 weights, activations rounded to 8 or 7 bits (ACTIVATION_LEVELS) with one scale per token.

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
        normalised, largest, _ = _normalised(x)
        return self._integer(normalised).mul_(largest)

    def _integer(self, normalised: Tensor) -> Tensor:
        operator = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return operator(normalised, 1 / ACTIVATION_LEVELS, ACTIVATION_LEVELS + 1, self._packed)


class OutlierInt8Linear(DynamicInt8Linear):
    """Option ``w8a8-outlier``: as ``w8a8``, but the columns with the largest activations are multiplied in fp32 beside it.

    LLM.int8's idea (Dettmers et al., 2022, section 3.2) with columns fixed at calibration. Their codes are zero.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        super().__init__(option, tensors, bias)
        self._columns = tensors["outlier_columns"].long()
        self._outlier_weight = tensors["outlier_weight"].float().t().contiguous()

    def _multiply(self, x: Tensor) -> Tensor:
        normalised, largest, taken = _normalised(x, self._columns)
        return add_row_by_row(self._integer(normalised).mul_(largest), taken, self._outlier_weight)


class GroupedInt8Linear(Linear):
    """Variants of option ``8``: int8 weights with a scale per group of columns, an offset, or both; bf16 activations.

    A product per group, summed in fp32; an offset is multiplied with the sum of its group's inputs. An option for quality, not speed.
    """

    def __init__(self, option: WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        codes = tensors["codes"]
        super().__init__(option, codes.shape[0], codes.shape[1], bias)
        if self.in_features % (option.group_size or 1):
            raise LlmpqError(
                f"option '{option.name}' needs input features in multiples of {option.group_size} (its group), not {self.in_features}"
            )
        self._groups = option.groups(self.in_features)
        self._codes = codes.view(self.out_features, self._groups, -1).transpose(0, 1).contiguous().clone()
        self._scales = tensors["scales"].view(self.out_features, self._groups).t().contiguous().clone()
        self._offsets = None if option.symmetric else tensors["offsets"].view(self.out_features, self._groups).t().float().contiguous()

    def _multiply(self, x: Tensor) -> Tensor:
        grouped = x.bfloat16().view(x.shape[0], self._groups, -1).transpose(0, 1).contiguous()
        y = x.new_zeros(x.shape[0], self.out_features)
        for rows, codes, scales in zip(grouped, self._codes, self._scales, strict=True):
            y.add_(torch.ops.aten._weight_int8pack_mm(rows, codes, scales))
        if self._offsets is not None:
            y = add_row_by_row(y, grouped.float().sum(2).t(), self._offsets)
        return y


_KERNELS: dict[str, Callable[[WeightOption, Mapping[str, Tensor], Tensor | None], Linear]] = {
    "float": FloatLinear,
    "fp16": HalfLinear,
    "bf16": BfloatLinear,
    "int8": Int8Linear,
    "int8-grouped": GroupedInt8Linear,
    "int8-dynamic": DynamicInt8Linear,
    "bnb-int8": BnbInt8Linear,
    "bnb-nf4": BnbNf4Linear,
    "int4": Int4Linear,
    "int3": Int3Linear,
    "int2": Int2Linear,
}


def make_linear(option: str | WeightOption, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> Linear:
    """Pack one operator for the CPU kernel of ``option``.

    ``tensors`` are the operator's stored tensors: ``weight`` [out, in] for ``32``, ``16`` and ``bf16`` (any floating type), else ``codes``
    and ``scales`` (and ``offsets``, or ``outlier_columns`` and ``outlier_weight``); ``bias`` [out]. Nothing of
    ``tensors`` is kept alive by the result. Raises LlmpqError where the kernel cannot take the shape or the values.
    """
    option = weight_option(option) if isinstance(option, str) else option
    return (OutlierInt8Linear if option.outliers else _KERNELS[option.kernel])(option, tensors, bias)


def _normalised(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x [n, in] over their largest magnitudes, these [n, 1], and what stood in ``columns`` (None: [n, 0]), taken out first."""
    if available():
        return kernels.normalise_rows(x, _SMALLEST_ROW, columns)
    taken = x[:, :0] if columns is None else x.index_select(1, columns)
    rest = x if columns is None else x.index_fill(1, columns, 0.0)
    # torch's vector norm of infinite order is not vectorised: this is twenty times faster
    largest = torch.maximum(rest.amax(1, keepdim=True), rest.amin(1, keepdim=True).neg_()).clamp_min_(_SMALLEST_ROW)
    return rest / largest, largest, taken


def check_half_range(weight: Tensor, what: str) -> None:
    """Refuse a weight that fp16 cannot hold: FBGEMM would silently saturate it."""
    largest = float(weight.abs().amax()) if weight.numel() else 0.0
    if not largest <= FP16_MAX:
        raise LlmpqError(f"{what} reaches {largest:.6g}, beyond fp16's largest number {FP16_MAX:.0f}: option '16' cannot hold it")


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
