"""The gradient-weighted indicator: a layer's output error, each component weighted by how much the model's loss depends on it.

With g = ∂(−log p of the next token) / ∂(output of layer i) on the calibration windows and Δ = f_b(h) − f(h) the error of that output at
option b (through the kernels that will serve it): mean over tokens of Σ_c (g_c Δ_c)². That is the error in the metric of the diagonal of
the empirical Fisher matrix, the second-order term of what the loss gains (as in SqueezeLLM, Kim et al., 2023, for outputs instead of
weights). All gradients are taken first, in one pass back through the model, a layer in memory at a time.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.indicator.base import WHOLE_LAYER, Damages, QuantisedLayer, Source, Walk
from llmpq.model.ends import Head
from llmpq.quant.kernels.cpu import make_linear

WINDOWS, TOKENS = 4, 128


class GradientError:
    """Squared output errors weighted by squared gradients of the loss."""

    def __init__(self, source: Source) -> None:
        self._walk = Walk(source, WINDOWS, TOKENS)
        self._inputs, self._gradients = _backward(Walk(source, WINDOWS, TOKENS))

    @torch.inference_mode()
    def damages(self, layer: QuantisedLayer) -> Damages:
        walk, index = self._walk, layer.index
        walk.expect(index)
        exact, scores = self._inputs[index + 1], {}
        for option, tensors in layer.to_run():
            error = walk.run(option, tensors) - exact
            scores[option.name] = {WHOLE_LAYER: float((error * self._gradients[index]).square().sum(-1).double().mean())}
        walk.step(exact)
        return scores


def _backward(walk: Walk) -> tuple[list[Tensor], list[Tensor]]:
    """(hidden states before every layer and after the last; gradient of the summed loss with respect to every layer's output)."""
    spec, states = walk.spec, [walk.hidden]
    with torch.no_grad():
        for index in range(spec.layers):
            states.append(walk.plain(index).prefill(states[-1].clone(), walk.context))
    tensors = walk.checkpoint.head()
    head = Head(spec, tensors, make_linear("32", {"weight": tensors["head.weight"]}))
    last = states[-1].clone().requires_grad_()
    logits = head(last)[:, :-1]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), walk.ids[:, 1:].reshape(-1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, last)
    gradients = [gradient]
    for index in range(spec.layers - 1, 0, -1):
        layer, given = walk.plain(index), states[index].clone().requires_grad_()
        layer.activation = _not_in_place(layer.activation)
        (gradient,) = torch.autograd.grad(layer.prefill(given, walk.context), given, gradient)
        gradients.append(gradient)
    return states, gradients[::-1]


def _not_in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Going back needs what an activation was given."""
    return lambda x: activation(x.clone())
