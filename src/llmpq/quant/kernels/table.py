"""Tables whose rows are looked up: a model's token embedding at the options it may have."""

from collections.abc import Mapping
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from llmpq.errors import ConfigError
from llmpq.quant.kernels.cpu import Int8Linear
from llmpq.quant.options import END_OPTIONS, weight_option


class Table(Protocol):
    """A weight [vocab, hidden] whose rows can be had by number."""

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows [..., hidden] in fp32 by their numbers [...]."""
        ...


class FloatTable:
    """Options ``32`` and ``16``: rows kept in their own type and widened after the look-up."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def rows(self, numbers: Tensor) -> Tensor:
        return F.embedding(numbers, self._weight).float()


def make_table(option: str, tensors: Mapping[str, Tensor]) -> Table:
    """The table of ``option`` from its stored tensors (``weight``, else ``codes`` and ``scales``).

    At ``8`` it is the very operator that a head at ``8`` multiplies with, so tied ends can share one. ConfigError for an option that
    cannot be looked up.
    """
    known = weight_option(option)
    if option not in END_OPTIONS["embedding"]:
        raise ConfigError(f"the embedding is looked up: it is kept at {', '.join(END_OPTIONS['embedding'])}, not '{option}'")
    return Int8Linear(known, tensors, None) if known.quantised else FloatTable(tensors["weight"])
