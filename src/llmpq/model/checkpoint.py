"""A checkpoint directory read by layer: nothing is held in memory between two calls."""

from pathlib import Path

from torch import Tensor

from llmpq.model.config_file import ConfigFile, ModelError
from llmpq.model.families import family_of
from llmpq.model.names import Names
from llmpq.model.spec import ModelSpec
from llmpq.model.weights import WeightFiles


class Checkpoint:
    """Canonical fp32 tensors of a Hugging Face directory (config.json + safetensors, one file or shards)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.spec = ModelSpec.from_directory(directory)
        self.names: Names = family_of(ConfigFile.read(directory)).NAMES
        self._files = WeightFiles(directory, self.names.prefixes)
        self._shapes = _canonical_shapes(self.spec)

    def layer(self, index: int) -> dict[str, Tensor]:
        """Tensors of decoder layer ``index`` only: for each of ModelSpec.operators ``.weight`` [out, in] and, where the family has one,
        ``.bias`` [out]; ``attention_norm``, ``mlp_norm`` with ``.weight`` and ``.bias``; ``q_norm.weight``, ``k_norm.weight`` [head_dim].
        """
        if not 0 <= index < self.spec.layers:
            raise ModelError(f"{self.directory}: there is no layer {index}; the model has layers 0 to {self.spec.layers - 1}")
        return self._checked(self.names.read_layer(self._files, self.spec, index), f"layer {index} ")

    def embedding(self) -> dict[str, Tensor]:
        """``embedding.weight`` [vocab, hidden]; ``positions.weight`` [rows, hidden] and ``embedding_norm.*`` where the family has them."""
        return self._checked(self.names.read_embedding(self._files, self.spec))

    def head(self) -> dict[str, Tensor]:
        """``final_norm.*`` where the family has it and ``head.weight`` [vocab, hidden] (the embedding again when tied)."""
        return self._checked(self.names.read_head(self._files, self.spec))

    def end(self, name: str) -> dict[str, Tensor]:
        """Tensors of ``embedding`` or ``head``."""
        return self.embedding() if name == "embedding" else self.head()

    def weight_files(self) -> list[Path]:
        """The safetensors files the checkpoint consists of, sorted."""
        return sorted(set(self._files.file_of.values()))

    def check_files(self) -> None:
        """Raise ModelError unless all files are there and complete, as far as their headers tell."""
        self._files.check()

    def _checked(self, tensors: dict[str, Tensor], where: str = "") -> dict[str, Tensor]:
        """``tensors``, all of them of the shape that config.json implies."""
        for name, tensor in tensors.items():
            expected = self._shapes[name]
            if tuple(tensor.shape) != expected:
                found, wanted = ("×".join(map(str, shape)) or "a single number" for shape in (tensor.shape, expected))
                raise ModelError(f"{self.directory}: {where}{name} is {found}, but config.json implies {wanted}")
        return tensors


def _canonical_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every canonical tensor that a model of any family may have."""
    shapes: dict[str, tuple[int, ...]] = {"q_norm.weight": (spec.head_dim,), "k_norm.weight": (spec.head_dim,)}
    for name, shape in spec.operators().items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for norm in ("attention_norm", "mlp_norm", "embedding_norm", "final_norm"):
        shapes |= {f"{norm}.weight": (spec.hidden,), f"{norm}.bias": (spec.hidden,)}
    shapes |= {"embedding.weight": (spec.vocab, spec.hidden), "head.weight": (spec.vocab, spec.hidden)}
    return {**shapes, "positions.weight": (spec.max_positions + spec.position_offset, spec.hidden)}
