"""Where a token stands: rotary tables and ALiBi slopes, and the work on them that is done once per call for all layers of a stage."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmpq.model.spec import ModelSpec, RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """theta^(-2i/d) [head_dim / 2] (RoFormer, eq. 15), rescaled as Llama 3.1 or linear interpolation prescribe."""
    base = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "default":
        return base
    # Llama 3.1: wavelengths that fit often into the trained context stay, those that do not are stretched, a ramp in between.
    turns = rope.original_max_positions * base / (2 * math.pi)
    ramp = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return ramp * base + (1.0 - ramp) * base / rope.factor


def rotary_tables(rope: RopeSpec, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin [positions, 1, head_dim]; the sine of the first half is negated so that x·cos + swap(x)·sin is the rotation."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., heads, head_dim] by tables broadcastable to it (pairs are dimensions i and i + head_dim/2)."""
    first, second = heads.chunk(2, -1)
    return (heads * cos).addcmul_(torch.cat((second, first), -1), sin)


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi slopes [heads] (Press et al. 2022, section 3): powers of 2^(-8/n); for other n, odd powers of the next series fill up."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / whole) for i in range(heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32)


@dataclass(frozen=True)
class PrefillContext:
    """Shared by all layers in one prefill call over ``tokens`` positions starting at 0."""

    tokens: int
    rotary: tuple[Tensor, Tensor] | None
    bias: Tensor | None  # [1, heads, tokens, tokens] with the causal mask in it; None: purely causal
    slots: Tensor | None = None  # [rows] where in the cache the rows go; None: the cache given is theirs already


@dataclass(frozen=True)
class DecodeContext:
    """Shared by all layers in one decode call: row r writes cache position ``positions[r]`` and attends to all up to it."""

    positions: Tensor  # [rows]
    rows: Tensor  # 0 … rows − 1
    common: int | None  # the position when it is the same in all rows
    length: int  # cache positions looked at: the longest row
    rotary: tuple[Tensor, Tensor] | None
    slopes: Tensor | None  # [heads] of ALiBi
    kv_heads: int

    @functools.cached_property
    def bias(self) -> Tensor | None:
        """What hides positions and what ALiBi adds, broadcastable to [rows, kv_heads, group, length]; None: nothing."""
        bias = None
        if self.common is None:
            hidden = torch.arange(self.length) > self.positions[:, None]
            bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None, :]
        if self.slopes is not None:
            alibi = (self.slopes[:, None] * torch.arange(self.length)).view(1, self.kv_heads, -1, self.length)
            bias = alibi if bias is None else alibi + bias
        return bias


class Positions:
    """Builds the contexts; keeps rotary tables for as many positions as were asked for."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._slopes = alibi_slopes(spec.heads) if spec.positions == "alibi" else None
        self._tables: tuple[Tensor, Tensor] | None = None

    def reserve(self, tokens: int) -> None:
        """Make rotary tables for ``tokens`` positions, so that no later call has to."""
        if self.spec.rope is not None and (self._tables is None or self._tables[0].shape[0] < tokens):
            self._tables = rotary_tables(self.spec.rope, self.spec.head_dim, tokens)

    def prefill(self, tokens: int, slots: Tensor | None = None) -> PrefillContext:
        """Right padding needs no mask: causal attention never lets a real token see the padding behind it."""
        self.reserve(tokens)
        rotary = None if self._tables is None else (self._tables[0][:tokens], self._tables[1][:tokens])
        return PrefillContext(tokens, rotary, self._alibi_causal(tokens), slots)

    def _alibi_causal(self, tokens: int) -> Tensor | None:
        if self._slopes is None:
            return None
        hidden = torch.full((tokens, tokens), -torch.inf).triu(1)
        return (self._slopes[:, None, None] * torch.arange(tokens) + hidden).unsqueeze(0)

    def decode(self, positions: Tensor) -> DecodeContext:
        """Context for one new token per row at ``positions`` [rows]."""
        places = positions.tolist()
        length, common = max(places) + 1, places[0] if min(places) == max(places) else None
        self.reserve(length)
        rotary = None
        if self._tables is not None:
            cos, sin = self._tables
            rotary = (cos[common], sin[common]) if common is not None else (cos[positions], sin[positions])
        return DecodeContext(positions, torch.arange(len(places)), common, length, rotary, self._slopes, self.spec.kv_heads)
