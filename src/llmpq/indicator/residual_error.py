"""The residual-error indicator: how far a layer's output moves when the layer runs at an option, relative to that output.

For layer i with input h (from the unquantised model) and option b: mean over tokens of |f_b(h) − f(h)|² / |f(h)|², where f is the whole
decoder layer, residual connection included, and f_b the same layer from its quantised file through the kernels that will serve it. So
weights, activation rounding and the kernel's own arithmetic all count, in one unit, and every token counts alike however large its
states are: the norm at the entrance of the next layer divides a token by its own size. Sums of squared output errors (variance,
gptq-loss) are led by the few attention-sink tokens whose states are hundreds of times larger (docs/log.md has the comparison).
"""

import torch

from llmpq.indicator.base import WHOLE_LAYER, Damages, QuantisedLayer, Source, Walk

WINDOWS, TOKENS = 4, 128
"""Calibration windows and tokens of each that are looked at; up to four times as many rank no better (docs/log.md)."""


class ResidualError:
    """Mean relative squared error of a layer's output, the unquantised model's hidden states going in."""

    def __init__(self, source: Source) -> None:
        self._walk = Walk(source, WINDOWS, TOKENS)

    @torch.inference_mode()
    def damages(self, layer: QuantisedLayer) -> Damages:
        walk = self._walk
        walk.expect(layer.index)
        exact = walk.plain(layer.index).prefill(walk.hidden.clone(), walk.context)
        size, scores = exact.square().sum(-1), {}
        for option, tensors in layer.to_run():
            error = (walk.run(option, tensors) - exact).square().sum(-1)
            scores[option.name] = {WHOLE_LAYER: float((error / size).mean())}
        walk.step(exact)
        return scores
