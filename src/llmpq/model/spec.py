"""The shape of a decoder-only model: everything that bytes, kernels and layers need to know, and nothing about file names."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmpq.model.config_file import ConfigFile, ModelError


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (RoFormer, eq. 34) with the scalings that do not depend on the sequence being served."""

    theta: float
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelSpec:
    """Sizes in elements; ``max_context`` is the longest sequence for which the decoder is exact (tokens)."""

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: str  # one of the names of llmpq.model.activation
    gated: bool
    positions: Literal["rope", "learned", "alibi"]
    rope: RopeSpec | None = None
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_first: bool = True
    embedding_norm: bool = False
    final_norm: bool = True
    tied_embeddings: bool = False
    position_offset: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelError(f"model of family {self.family}: {self.heads} attention heads are not a multiple of {self.kv_heads} KV heads")
        if self.positions == "rope" and self.head_dim % 2:
            raise ModelError(f"model of family {self.family}: rotary positions need an even head size, found {self.head_dim}")

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ModelSpec":
        """Read config.json (and generation_config.json for the end-of-sequence tokens); raise ModelError for what cannot be run."""
        from llmpq.model.families import family_of

        config = ConfigFile.read(directory)
        if config.values.get("quantization_config"):
            raise config.refuse("quantization_config", "an already quantised checkpoint; give the full-precision one")
        brought = [name for name in config.table("auto_map") if name == "AutoConfig" or name.startswith("AutoModel")]
        if brought:
            raise config.refuse("auto_map", "the model brings code of its own, which is never run; give one of a known family")
        spec = family_of(config).spec(config)
        if (Path(directory) / "generation_config.json").is_file():
            ends = ConfigFile.read(directory, "generation_config.json").token_ids("eos_token_id")
            spec = replace(spec, eos_token_ids=ends or spec.eos_token_ids)
        return spec

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def max_context(self) -> int:
        """A sliding window longer than the sequence changes nothing, so up to its length full attention is exact."""
        return min(self.max_positions, self.sliding_window or self.max_positions)

    def check_context(self, tokens: int) -> None:
        """Raise ModelError when a sequence of ``tokens`` does not fit the model's positions or its sliding window."""
        if tokens <= self.max_context:
            return
        if self.sliding_window is not None and self.sliding_window < self.max_positions:
            limit = f"its sliding window of {self.sliding_window} tokens, and sliding-window attention is not implemented"
        else:
            limit = f"its {self.max_positions} positions"
        raise ModelError(f"{tokens} tokens are more than the {self.family} model allows: {limit}; use shorter prompts or outputs")

    def operators(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of a layer's linear operators, canonical and fused: rows of qkv are q;k;v, of gate_up gate;up."""
        query, shared = self.heads * self.head_dim, self.kv_heads * self.head_dim
        first = {"gate_up": (2 * self.ffn, self.hidden)} if self.gated else {"up": (self.ffn, self.hidden)}
        return {"qkv": (query + 2 * shared, self.hidden), "o": (self.hidden, query), **first, "down": (self.hidden, self.ffn)}

    def part_rows(self, operator: str) -> list[int]:
        """Rows of the parts that a fused operator holds, in order: q, k, v; gate, up; one number for the others."""
        query, shared = self.heads * self.head_dim, self.kv_heads * self.head_dim
        fused = {"qkv": [query, shared, shared], "gate_up": [self.ffn, self.ffn]}
        return fused.get(operator) or [self.operators()[operator][0]]

    def has_bias(self, name: str) -> bool:
        """Whether a layer's operator or norm, or the final norm, has a bias."""
        biases = {"qkv": self.qkv_bias, "o": self.o_bias, "gate_up": self.mlp_bias, "up": self.mlp_bias, "down": self.mlp_bias}
        return biases.get(name, self.norm == "layer" and name not in ("q_norm", "k_norm"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return asdict(self)
