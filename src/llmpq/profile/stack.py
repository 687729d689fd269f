"""The small stages that a profile times: a stack of decoder layers at one option, one end of the model, or nothing but the call itself.

They are ordinary StageModels, so what is timed is what serves. Weights are rounded to nearest on the fly: kernels are equally fast on any
codes, and a profile must not depend on a quantised model.
"""

from collections.abc import Sequence

from torch import Tensor

from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding, Head
from llmpq.model.spec import ModelSpec
from llmpq.model.stage import StageModel
from llmpq.quant.bytes import End
from llmpq.quant.ends import rounded_end
from llmpq.quant.kernels.cpu import make_linear
from llmpq.quant.kernels.table import make_table
from llmpq.quant.options import WeightOption, layer_option, outlier_count, weight_option
from llmpq.quant.quantise import nearest


def layer_stack(checkpoint: Checkpoint, option: str, count: int) -> StageModel:
    """``count`` copies of the first decoder layer, packed one by one at ``option`` and with its cache, without ends.

    Several copies, because one alone stays in the processor's caches while the layers of a real stage push each other out.
    """
    spec, chosen = checkpoint.spec, layer_option(option)
    known = chosen.weights
    tensors = checkpoint.layer(0)
    parts_of = {name: stored(tensors[f"{name}.weight"], known) for name in spec.operators()}
    layers = []
    for _ in range(count):
        operators = {name: make_linear(known, parts, tensors.get(f"{name}.bias")) for name, parts in parts_of.items()}
        layers.append(DecoderLayer(spec, tensors, operators, chosen.kv))
    return _bare_stage(spec, layers)


def stored(weight: Tensor, option: WeightOption) -> dict[str, Tensor]:
    """``weight`` [out, in] as its layer file would hold it; outlier columns are spread evenly, which costs as much as any others."""
    columns = weight.shape[1]
    kept = range(0, columns, columns // outlier_count(columns)) if option.outliers else ()
    return nearest(option, weight, list(kept)[: outlier_count(columns)])


def some_layers(stage: StageModel, first: int, count: int) -> StageModel:
    """``count`` layers of the stage from ``first`` on; weights are shared, not copied."""
    return _bare_stage(stage.spec, stage.layers[first : first + count])


def empty_stage(checkpoint: Checkpoint) -> StageModel:
    """No layer and no end: what one call costs by itself (positions, cache views, the emulated device's own overhead)."""
    return _bare_stage(checkpoint.spec, [])


def _bare_stage(spec: ModelSpec, layers: Sequence[DecoderLayer]) -> StageModel:
    return StageModel(spec, 0, layers, None, None, {}, [])


def end_stage(checkpoint: Checkpoint, end: End, option: str) -> StageModel:
    """The embedding or the head alone."""
    spec = checkpoint.spec
    made = rounded_end(checkpoint.end(end), end, weight_option(option))
    if end == "embedding":
        return StageModel(spec, 0, [], Embedding(spec, made.vectors, make_table(option, made.operators[end])), None, {}, [])
    return StageModel(spec, 0, [], None, Head(spec, made.vectors, make_linear(option, made.operators[end])), {}, [])


def known_options(options: Sequence[str]) -> list[str]:
    """``options`` in their order without repetition; raises ConfigError for one that does not exist."""
    return [layer_option(option).name for option in dict.fromkeys(options)]
