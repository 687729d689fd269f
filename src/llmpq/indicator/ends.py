"""What embedding and head at an option do to the model, in the unit of every indicator: the damage of uniform 4 bit.

For one end at option b, through the kernel that will serve it and all else unquantised: mean over calibration tokens of KL(p ‖ q) in
nats, p the unquantised model's next-token distribution, divided by the same of the whole model with every layer at the reference option.
The head has no output but the predictions, and ends are few, so the most direct measure is cheap: the unquantised model runs once on
the plain states and once for every option of the embedding, the reference model once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmpq.errors import ArtifactError
from llmpq.indicator.base import Source, Walk
from llmpq.indicator.divergence import divergence
from llmpq.model.ends import Embedding, Head
from llmpq.quant.bytes import ENDS, End
from llmpq.quant.files import LayerTensors, plain_layer, read_layer
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.kernels.table import make_table
from llmpq.quant.layer_index import Folders, find_layer_file
from llmpq.quant.options import layer_option, options_of_end, weight_option

WINDOWS, TOKENS = 4, 128


class _Variants:
    """Hidden states of the same windows in several models that differ in one thing, a layer at a time through all of them."""

    def __init__(self, source: Source) -> None:
        self._source, self.plain = source, Walk(source, WINDOWS, TOKENS)
        self.embedded: dict[str, Walk] = {}
        self.reference = Walk(source, WINDOWS, TOKENS)

    def embed(self, option: str, stored: LayerTensors) -> None:
        """One more model: its embedding is ``stored``."""
        walk = Walk(self._source, WINDOWS, TOKENS)
        embedding = Embedding(walk.spec, stored.vectors, make_table(option, stored.operators["embedding"]))
        walk.hidden = embedding(walk.ids, torch.arange(walk.ids.shape[1]))
        self.embedded[option] = walk

    def step(self, index: int, reference: LayerTensors) -> None:
        """Layer ``index`` of every model; that of the reference model is given."""
        layer = self.plain.plain(index)
        for walk in (self.plain, *self.embedded.values()):
            walk.step(layer.prefill(walk.hidden.clone(), walk.context))
        self.reference.step(self.reference.run(layer_option(reference.option), reference))


@torch.inference_mode()
def end_damages(source: Source, folders: Folders, end_options: Sequence[str], reference: str) -> tuple[list[dict[str, Any]], float]:
    """(rows {end, option, omega} of every end at those of ``end_options`` that it may have, the divergence of uniform ``reference``).

    ``folders`` hold the files of all layers at ``reference`` and of the ends. Options of 16 bits and more do no damage by definition; where
    there are no others nothing is run and the divergence is 0. Raises ArtifactError for a file that is missing.
    """
    stored = {
        (end, option): read_layer(find_layer_file(folders, end, option), end, option)
        for end in ENDS
        for option in options_of_end(end, end_options)
        if weight_option(option).quantised
    }
    scores, unit = _divergences(source, folders, stored, reference) if stored else ({}, 0.0)
    rows = []
    for end in ENDS:
        for option in options_of_end(end, end_options):
            rows.append({"end": end, "option": option, "omega": scores[end, option] / unit if (end, option) in stored else 0.0})
    return rows, unit


def _divergences(
    source: Source, folders: Folders, stored: dict[tuple[End, str], LayerTensors], reference: str
) -> tuple[dict[tuple[End, str], float], float]:
    """(mean divergence in nats of each end that is ``stored``, that of the whole model at ``reference``)."""
    models = _Variants(source)
    for (end, option), tensors in stored.items():
        if end == "embedding":
            models.embed(option, tensors)
    for index in range(source.checkpoint.spec.layers):
        models.step(index, read_layer(find_layer_file(folders, index, reference), index, reference))
    plain = _head(source, plain_layer(source.checkpoint.end("head"), ["head"], "head", "32"))
    expected = models.plain.hidden
    unit = _mean(plain, expected, plain, models.reference.hidden)
    if not unit > 0:
        raise ArtifactError(f"indicator: uniform '{reference}' diverges by {unit} nats, which cannot serve as unit; calibrate again")
    found: dict[tuple[End, str], float] = {}
    for (end, option), tensors in stored.items():
        if end == "embedding":
            found[end, option] = _mean(plain, expected, plain, models.embedded[option].hidden)
        else:
            found[end, option] = _mean(plain, expected, _head(source, tensors), expected)
    return found, unit


def _head(source: Source, stored: LayerTensors) -> Head:
    return Head(source.checkpoint.spec, stored.vectors, make_linear(stored.option, stored.operators["head"]))


def _mean(plain: Head, expected: Tensor, head: Head, hidden: Tensor) -> float:
    """Mean divergence over windows [windows, tokens, hidden]: a window's logits at a time, which are what takes the memory."""
    each = [divergence(p, q) for p, q in zip(_predictions(plain, expected), _predictions(head, hidden), strict=True)]
    return sum(each) / len(each)


def _predictions(head: Head, hidden: Tensor) -> Iterator[Tensor]:
    return (F.log_softmax(head(window), -1) for window in hidden)
