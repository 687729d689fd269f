"""The Hessian indicator: GPTQ's loss of an operator, weighted by the largest eigenvalue of its inputs' Hessian.

What LLM-PQ compares its variance indicator with (method section 6): the loss tr(ΔW H ΔWᵀ) (``gptq_loss``, kernel included) times
λ_max(H), a true eigenvalue (the published code takes an entry of a Cholesky factor in its place).
"""

from torch import Tensor

from llmpq.indicator.base import Damages, QuantisedLayer, Source
from llmpq.indicator.gptq_loss import GptqLoss

_STEPS, _TOLERANCE = 1000, 1e-7


class Hessian:
    """gptq-loss, each operator times the top eigenvalue of its Hessian."""

    def __init__(self, source: Source) -> None:
        self._loss, self._calibration = GptqLoss(source), source.calibration

    def damages(self, layer: QuantisedLayer) -> Damages:
        scores = self._loss.damages(layer)
        names = next(iter(layer.stored.values())).operators if layer.stored else ()
        top = {name: top_eigenvalue(self._calibration.operator(layer.index, name).hessian) for name in names}
        return {option: {name: value * top[name] for name, value in parts.items()} for option, parts in scores.items()}


def top_eigenvalue(matrix: Tensor) -> float:
    """Largest eigenvalue of a symmetric positive semi-definite ``matrix`` [n, n], by power iteration in fp64 (n² a step, no n³)."""
    work = matrix.double()
    vector = work.diagonal().clamp_min(0.0) + 1e-12 * float(work.diagonal().sum() + 1.0)
    vector, value = vector / vector.norm(), 0.0
    for _ in range(_STEPS):
        image = work @ vector
        found = float(vector @ image)  # Rayleigh's quotient: off by the square of the vector's error
        size = float(image.norm())
        if size == 0.0:
            return 0.0
        vector = image / size
        if abs(found - value) <= _TOLERANCE * found:
            return found
        value = found
    return value
