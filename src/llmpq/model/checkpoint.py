"""A checkpoint directory read by layer: nothing is held in memory between two calls."""

from pathlib import Path

from torch import Tensor

from llmpq.model.config_file import ConfigFile, ModelError
from llmpq.model.families import family_of
from llmpq.model.spec import ModelSpec
from llmpq.model.weights import WeightFiles


class Checkpoint:
    """Canonical fp32 tensors of a Hugging Face directory (config.json + safetensors, one file or shards)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.spec = ModelSpec.from_directory(directory)
        self._family = family_of(ConfigFile.read(directory))
        self._files = WeightFiles(directory, self._family.PREFIXES)

    def layer(self, index: int) -> dict[str, Tensor]:
        """Tensors of decoder layer ``index`` only: for each of ModelSpec.operators ``.weight`` [out, in] and, where the family has one,
        ``.bias`` [out]; ``attention_norm``, ``mlp_norm`` with ``.weight`` and ``.bias``; ``q_norm.weight``, ``k_norm.weight`` [head_dim].
        """
        if not 0 <= index < self.spec.layers:
            raise ModelError(f"{self.directory}: there is no layer {index}; the model has layers 0 to {self.spec.layers - 1}")
        tensors = self._family.layer(self._files, self.spec, index)
        for name, shape in self.spec.operators().items():
            self._check_shape(f"layer {index} {name}.weight", tensors[f"{name}.weight"], shape)
        return tensors

    def embedding(self) -> dict[str, Tensor]:
        """``embedding.weight`` [vocab, hidden]; ``positions.weight`` [rows, hidden] and ``embedding_norm.*`` where the family has them."""
        tensors = self._family.embedding(self._files, self.spec)
        self._check_shape("embedding.weight", tensors["embedding.weight"], (self.spec.vocab, self.spec.hidden))
        return tensors

    def head(self) -> dict[str, Tensor]:
        """``final_norm.*`` where the family has it and ``head.weight`` [vocab, hidden] (the embedding again when tied)."""
        tensors = self._family.head(self._files, self.spec)
        self._check_shape("head.weight", tensors["head.weight"], (self.spec.vocab, self.spec.hidden))
        return tensors

    def weight_files(self) -> list[Path]:
        """The safetensors files the checkpoint consists of, sorted."""
        return sorted(set(self._files.file_of.values()))

    def _check_shape(self, name: str, tensor: Tensor, expected: tuple[int, int]) -> None:
        if tuple(tensor.shape) != expected:
            found = "×".join(map(str, tensor.shape))
            raise ModelError(f"{self.directory}: {name} is {found}, but config.json implies {expected[0]}×{expected[1]}")
