"""The divergence indicator: how far the model's own predictions move when one layer runs at an option, all others unquantised.

Mean over tokens of KL(p ‖ q) in nats, p the unquantised model's next-token distribution and q the one with layer i at option b through the
kernels that will serve it. The most direct measure of a single layer, and the most expensive: every (layer, option) runs the rest of
the model, and all of the unquantised model is in memory at once. A yardstick for the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.indicator.base import WHOLE_LAYER, Damages, QuantisedLayer, Source, Walk
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Head
from llmpq.quant.kernels.cpu import make_linear

WINDOWS, TOKENS = 4, 64


class Divergence:
    """KL divergence of the logits, with one layer at a time at its option."""

    def __init__(self, source: Source) -> None:
        self._walk = Walk(source, WINDOWS, TOKENS)
        spec, tensors = self._walk.spec, source.checkpoint.head()
        self._layers: list[DecoderLayer] = [self._walk.plain(index) for index in range(spec.layers)]
        self._head = Head(spec, tensors, make_linear("32", {"weight": tensors["head.weight"]}))
        self._expected: Tensor | None = None

    @torch.inference_mode()
    def damages(self, layer: QuantisedLayer) -> Damages:
        walk = self._walk
        walk.expect(layer.index)
        if self._expected is None:
            self._expected = self._predictions(walk.hidden, 0)
        scores: Damages = {}
        for option, tensors in layer.to_run():
            found = self._predictions(walk.run(option, tensors), layer.index + 1)
            scores[option.name] = {WHOLE_LAYER: divergence(self._expected, found)}
        walk.step(self._layers[layer.index].prefill(walk.hidden.clone(), walk.context))
        return scores

    def _predictions(self, hidden: Tensor, first: int) -> Tensor:
        """Log-probabilities [windows, tokens, vocab] of the unquantised layers from ``first`` on."""
        hidden = hidden.clone()
        for layer in self._layers[first:]:
            hidden = layer.prefill(hidden, self._walk.context)
        return F.log_softmax(self._head(hidden), -1)


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean over tokens of KL(p ‖ q) in nats from log-probabilities [..., vocab]; never negative, whatever rounding does."""
    return max(float((expected.exp() * (expected - found)).sum(-1).double().mean()), 0.0)
