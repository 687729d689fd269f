"""The random indicator: a control that knows nothing of the model. What beats it by little is worth little.

Each layer draws one number in (0, 1], and an option of b bits does that times 4^(−b): a step half as wide has a quarter of the squared
error. A cache of fewer than 16 bits adds the same for its own bits. So it knows that fewer bits are worse, and that alone.
"""

import random

from llmpq.indicator.base import WHOLE_LAYER, Damages, QuantisedLayer, Source


class RandomControl:
    """The same numbers for the same ``seed`` of the settings (0)."""

    def __init__(self, source: Source) -> None:
        self._draw = random.Random(int(source.settings.get("seed", 0)))

    def damages(self, layer: QuantisedLayer) -> Damages:
        share = 1.0 - self._draw.random()
        bits = {option.name: 4.0**-option.bits for option in layer.stored}
        for option in layer.cached:
            weights = 4.0**-option.weights.bits if option.weights.quantised else 0.0
            bits[option.name] = weights + 4.0 ** -int(option.kv)
        return {name: {WHOLE_LAYER: share * error} for name, error in bits.items()}
