"""What assignments really do: log-likelihood of many of them on the same windows, every (layer, option) packed only once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.evaluate.perplexity import perplexity
from llmpq.model.decoder import DecoderLayer
from llmpq.model.loading import StageLoader
from llmpq.model.stage import StageModel
from llmpq.quant.layer_index import Folders
from llmpq.validity.assignments import Assignment
from llmpq.validity.settings import PLAIN

Losses = dict[str, list[float]]
"""Text → mean negative log-likelihood (nats a token) of each window."""


class LayerBank:
    """The model with any assignment, through the serving kernels: layers are loaded as the runtime loads them, and kept."""

    def __init__(self, checkpoint_dir: str | Path, quantised_dir: Folders) -> None:
        self._where = (checkpoint_dir, quantised_dir)
        self._ends = StageLoader(*self._where).load(0, [], PLAIN, PLAIN)
        self._layers: dict[tuple[int, str], DecoderLayer] = {}

    @property
    def layers(self) -> int:
        return self._ends.spec.layers

    def model(self, assignment: Sequence[str]) -> StageModel:
        """A whole model; its layers are shared with other assignments' models."""
        layers = [self._layer(index, option) for index, option in enumerate(assignment)]
        return StageModel(self._ends.spec, 0, layers, self._ends.embedding, self._ends.head, {}, [])

    def _layer(self, index: int, option: str) -> DecoderLayer:
        if (index, option) not in self._layers:
            self._layers[index, option] = StageLoader(*self._where).load(index, [option]).layers[0]
        return self._layers[index, option]


class Measurements:
    """Losses by assignment, kept in a file of JSON lines as they are made, so that a killed study goes on where it stopped.

    ``recipe`` is everything but the assignment that a loss depends on; lines of another recipe are not used.
    """

    def __init__(self, path: str | Path, bank: LayerBank, texts: Mapping[str, Tensor], recipe: str) -> None:
        self._path, self._bank, self._texts, self._recipe = Path(path), bank, texts, recipe
        self._known: dict[str, Losses] = {}
        if self._path.is_file():
            whole, _, cut_off = self._path.read_text(encoding="utf-8").rpartition("\n")
            for number, line in enumerate(whole.splitlines(), 1):
                self._take(line, number)
            if cut_off:  # the study was killed while it wrote this line
                artifacts.write_text(self._path, whole + "\n" if whole else "")

    def _take(self, line: str, number: int) -> None:
        try:
            row: dict[str, Any] = json.loads(line)
            if row["recipe"] == self._recipe:
                self._known[row["key"]] = {str(text): [float(loss) for loss in losses] for text, losses in row["losses"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{self._path}: line {number} is no measurement; remove that line") from None

    def known(self, assignment: Assignment) -> bool:
        """Whether it was measured already."""
        return key(assignment) in self._known

    def losses(self, assignment: Assignment) -> Losses:
        """Losses of ``assignment``, measured now or before."""
        own = key(assignment)
        if own not in self._known:
            model = self._bank.model(assignment)
            with torch.inference_mode():
                found = {text: perplexity(model, windows)["nll_windows"] for text, windows in self._texts.items()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"recipe": self._recipe, "key": own, "options": list(assignment), "losses": found}) + "\n")
            self._known[own] = found
        return self._known[own]


def key(assignment: Sequence[str]) -> str:
    """A short name for an assignment."""
    return hashlib.sha256(" ".join(assignment).encode()).hexdigest()[:16]
