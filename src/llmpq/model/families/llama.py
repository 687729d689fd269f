"""Llama (1–3.x, and models published in its format such as SmolLM2); the other gated, rotary families build on it."""

from llmpq.model.activation import activation_name
from llmpq.model.config_file import ConfigFile
from llmpq.model.names import Names
from llmpq.model.spec import ModelSpec, RopeSpec

NAMES = Names(
    prefixes=("model.", ""),
    layer="layers.{}.",
    operators={
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    },
    layer_norms={
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
    ends={"embedding": "embed_tokens", "final_norm": "norm", "head": "lm_head"},
)


def spec(config: ConfigFile) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    return gated_rotary_spec(config, "llama", qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False))


def gated_rotary_spec(
    config: ConfigFile,
    family: str,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    sliding_window: int | None = None,
) -> ModelSpec:
    """The common reading of Llama-like configurations (RMS norm, gated MLP, rotary positions, grouped KV heads)."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    eos = config.token_ids("eos_token_id")
    return ModelSpec(
        family=family,
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        ffn=config.size("intermediate_size"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head_dim=config.size("head_dim", hidden // heads),
        vocab=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings"),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=activation_name(config, "hidden_act", "silu"),
        gated=True,
        positions="rope",
        rope=rope_spec(config),
        sliding_window=sliding_window,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=eos,
    )


def rope_spec(config: ConfigFile) -> RopeSpec:
    """Rotary settings from ``rope_parameters`` (transformers 5) or ``rope_theta`` + ``rope_scaling`` (before)."""
    key = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    table = config.table(key)
    theta = table.get("rope_theta") or config.number("rope_theta", 10000.0)
    if not isinstance(theta, (int, float)) or isinstance(theta, bool) or theta <= 0:
        raise config.refuse(key if table.get("rope_theta") else "rope_theta", f"the rotary base is {theta!r}, expected a positive number")
    theta = float(theta)
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise config.refuse(key, f"rotary scaling '{kind}' is not implemented (default, linear and llama3 are)")
    if table.get("partial_rotary_factor", 1.0) != 1.0:
        raise config.refuse(key, "partial rotary embeddings are not implemented")
    if kind == "default":
        return RopeSpec(theta)
    needed = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in needed if not isinstance(table.get(name), (int, float))]
    if missing:
        raise config.refuse(key, f"rotary scaling '{kind}' needs the number(s) {', '.join(missing)}")
    if kind == "linear":
        return RopeSpec(theta, "linear", float(table["factor"]))
    return RopeSpec(
        theta,
        "llama3",
        float(table["factor"]),
        float(table["low_freq_factor"]),
        float(table["high_freq_factor"]),
        int(table["original_max_position_embeddings"]),
    )
