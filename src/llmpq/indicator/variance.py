"""The variance indicator of LLM-PQ (method section 6): how much variance rounding adds to an operator's output, from steps alone.

A weight of step S rounded deterministically is off by at most S/2, so its error times an input of variance Var[X] adds at most
S²·Var[X]/4 to an output; stochastic rounding adds S²·(E[X]² + Var[X])/6 = S²·E[X²]/6. Summed over the D_W inputs of an output, with
the step of each input's group: D_W · S² · G(X). Cheap: it needs scales and column statistics, no codes and no Hessian.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmpq.errors import ConfigError
from llmpq.indicator.base import Damages, QuantisedLayer, Source
from llmpq.quant.bnb import nf4_step
from llmpq.quant.calibration import InputStatistics
from llmpq.quant.kernels.cpu import ACTIVATION_LEVELS
from llmpq.quant.options import WeightOption

ROUNDINGS = {"deterministic": 4.0, "stochastic": 6.0}
MOMENTS = ("variance", "second")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse unknown ``rounding`` or ``moment``."""
    for key, known in (("rounding", tuple(ROUNDINGS)), ("moment", MOMENTS)):
        if settings.get(key, known[0]) not in known:
            raise ConfigError(f"indicator.{key} '{settings[key]}' is unknown; known are {', '.join(known)}")


def damage(
    option: WeightOption, weight: Tensor, stored: Mapping[str, Tensor], statistics: InputStatistics, settings: Mapping[str, Any]
) -> float:
    """Variance added to an output, summed over the operator's outputs: weights' part plus, where the kernel rounds them, activations'.

    ``weight`` [out, in] unquantised, ``stored`` its tensors at ``option``. ``settings``: ``rounding`` deterministic (default) or
    stochastic; ``moment`` of the inputs: variance (default) or second (E[X²]; always used by stochastic rounding).
    """
    rounding = settings.get("rounding", "deterministic")
    second = rounding == "stochastic" or settings.get("moment", "variance") == "second"
    moment = statistics.second_moment if second else statistics.variance
    columns = torch.arange(weight.shape[1])
    if option.outliers:
        columns = columns[~torch.isin(columns, stored["outlier_columns"].long())]
    steps = stored["scales"].float().square() * (nf4_step() ** 2 if option.kernel == "bnb-nf4" else 1.0)
    per_column = steps.sum(0).repeat_interleave(option.group_size) if option.group_size else steps.sum().expand(weight.shape[1])
    total = float((per_column * moment)[columns].sum(dtype=torch.float64))
    if option.quantises_activations:
        # The same with weight and input exchanged: the step of a token is its largest magnitude over the codes' range.
        levels = ACTIVATION_LEVELS if option.kernel == "int8-dynamic" else 2 ** (option.activation_bits - 1) - 1
        step = statistics.rows[:, columns].abs().amax(1).double().square().mean() / levels**2
        total += float(step * weight[:, columns].double().square().sum())
    return total / ROUNDINGS[rounding]


class Variance:
    """The closed form above for every operator, from the calibration's column statistics."""

    def __init__(self, source: Source) -> None:
        check_settings(source.settings)
        self._source = source

    def damages(self, layer: QuantisedLayer) -> Damages:
        checkpoint, calibration, settings = self._source.checkpoint, self._source.calibration, self._source.settings
        weights = checkpoint.layer(layer.index)
        names = checkpoint.spec.operators()
        statistics = {name: calibration.operator(layer.index, name, hessian=False) for name in names}
        return {
            option.name: {
                name: damage(option, weights[f"{name}.weight"], tensors.operators[name], statistics[name], settings) for name in names
            }
            for option, tensors in layer.stored.items()
        }
