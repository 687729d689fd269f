"""Random stored operators of every option, for the tests of this folder."""

import torch
from torch import Tensor

from llmpq.quant.files import plain_layer
from llmpq.quant.gptq import Quantised
from llmpq.quant.options import OPTIONS, outlier_count
from llmpq.quant.quantise import nearest, stored_tensors

ROW_EXACT = tuple(option for option in OPTIONS if option != "32")


def fits(option: str, shape: tuple[int, int]) -> bool:
    """Whether the inputs of ``shape`` [out, in] are whole groups of the option."""
    return shape[1] % (OPTIONS[option].group_size or 1) == 0


def stored(option: str, out_features: int, in_features: int, seed: int = 0) -> dict[str, Tensor]:
    """A random weight, rounded to nearest, as a layer file would hold it."""
    return stored_weight(option, random_weight(out_features, in_features, seed), seed)


def random_weight(out_features: int, in_features: int, seed: int = 0) -> Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)) / in_features**0.5


def stored_weight(option: str, weight: Tensor, seed: int = 0) -> dict[str, Tensor]:
    known = OPTIONS[option]
    if not known.quantised:
        return plain_layer({"o.weight": weight}, ["o"], 0, option).operators["o"]
    kept: list[int] = []
    if known.outliers:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed + 1))
        kept = order[: outlier_count(weight.shape[1])].tolist()
    return nearest(known, weight, kept)


def arbitrary(option: str, out_features: int, in_features: int) -> dict[str, Tensor]:
    """Tensors of the right types and sizes, quickly: for what depends on sizes only."""
    known = OPTIONS[option]
    if not known.quantised:
        return {"weight": torch.ones(out_features, in_features, dtype=torch.float32 if option == "32" else torch.float16)}
    if known.package:
        return nearest(known, torch.ones(out_features, in_features))
    codes = torch.ones(out_features, in_features, dtype=torch.int8)
    groups = known.groups(in_features)
    kept = torch.arange(outlier_count(in_features)) if known.outliers else torch.arange(0)
    scales, offsets = torch.ones(out_features, groups), None if known.symmetric else torch.ones(out_features, groups)
    return stored_tensors(known, Quantised(codes, scales, kept, torch.ones(out_features, len(kept)), offsets))


def inputs(rows: int, in_features: int, seed: int = 2) -> Tensor:
    """Random rows of very different sizes; row 1 is zero."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=draw) * torch.logspace(-2, 3, rows).unsqueeze(1)
    if rows > 1:
        x[1] = 0.0
    return x
