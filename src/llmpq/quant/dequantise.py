"""Stored tensors of one operator → the fp32 matrix they stand for: what tests compare kernels with and what an export unpacks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmpq.errors import ConfigError
from llmpq.quant.bnb import nf4_levels
from llmpq.quant.options import WeightOption
from llmpq.quant.packing import unpack


def signed_codes(option: WeightOption, tensors: Mapping[str, Tensor]) -> Tensor:
    """int8 codes [out, in], centred on zero: weight = code × scale (+ offset) of its row or group.

    ConfigError for ``bnb-nf4``, whose codes are places in a table.
    """
    if option.kernel == "bnb-nf4":
        raise ConfigError("option 'bnb-nf4' has no integer codes: its weights lie on NF4's table of levels")
    if option.bits == 8:
        return tensors["codes"]
    return unpack(tensors["codes"], option.bits).to(torch.int8) - 2 ** (option.bits - 1)


def dequantise(option: WeightOption, tensors: Mapping[str, Tensor]) -> Tensor:
    """fp32 [out, in] of one operator's stored tensors (``weight``, or ``codes`` and ``scales`` and maybe offsets or outlier columns).

    For quantised options these are exactly the weights that the kernels multiply with: scales and offsets are stored in their own type.
    """
    if not option.quantised:
        return tensors["weight"].float()
    if option.kernel == "bnb-nf4":
        codes = nf4_levels()[unpack(tensors["codes"], option.bits).int()]
    else:
        codes = signed_codes(option, tensors).float()
    scales = tensors["scales"].float()
    out_features, in_features = codes.shape
    grouped = codes.view(out_features, option.groups(in_features), -1) * scales.view(out_features, -1, 1)
    if not option.symmetric:
        grouped += tensors["offsets"].float().view(out_features, -1, 1)
    weight = grouped.view(out_features, in_features)
    if option.outliers:
        weight[:, tensors["outlier_columns"].long()] = tensors["outlier_weight"].float()
    return weight
