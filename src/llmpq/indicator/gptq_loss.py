"""The GPTQ-loss indicator: the squared error of an operator's output that the quantised weights and their kernel really make.

Weights: tr(ΔW H ΔWᵀ), what GPTQ minimises, over all calibration tokens. H is the calibration's: for o, gate and up, and down every token
counts alike, for q, k and v it counts (1 + attention received) / 2 (llmpq.quant.calibrate), so qkv's part is a weighted mean and not the
plain squared error. Activations: what the kernel that will serve the option adds to it, measured by running that kernel on sampled input
rows, all alike, because no look at the weights can see it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmpq.indicator.base import Damages, QuantisedLayer, Source
from llmpq.quant.dequantise import dequantise
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.options import WeightOption


@torch.inference_mode()
def damage(option: WeightOption, stored: Mapping[str, Tensor], rows: Tensor, weight_loss: float) -> float:
    """Mean over tokens of the squared output error, summed over outputs; the weights' part with the calibration's weights of tokens.

    ``stored``: the operator's tensors at ``option``; ``rows`` [n, in] fp32 inputs; ``weight_loss`` = tr(ΔW H ΔWᵀ) of the manifest, its
    H = Xᵀ D X / tokens.
    """
    error = make_linear(option, stored)(rows) - rows @ dequantise(option, stored).t()
    return weight_loss + float(error.double().square().sum(1).mean())


class GptqLoss:
    """The loss that quantise recorded, and what the kernel adds on the calibration's sampled rows."""

    def __init__(self, source: Source) -> None:
        self._calibration = source.calibration

    def damages(self, layer: QuantisedLayer) -> Damages:
        rows: dict[str, Tensor] = {}
        scores: Damages = {}
        for option, tensors in layer.stored.items():
            scores[option.name] = {}
            for name, stored in tensors.operators.items():
                if name not in rows:
                    rows[name] = self._calibration.operator(layer.index, name, hessian=False).rows
                scores[option.name][name] = damage(option, stored, rows[name], layer.losses[option][name])
        return scores
