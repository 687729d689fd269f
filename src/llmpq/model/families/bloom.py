"""BLOOM: LayerNorm, ungated MLP with tanh GELU, ALiBi instead of positions, a norm after the embedding, q/k/v interleaved by head."""

from llmpq.model.config_file import ConfigFile
from llmpq.model.names import Names
from llmpq.model.spec import ModelSpec

NAMES = Names(
    prefixes=("transformer.", ""),
    layer="h.{}.",
    operators={
        "qkv": ("self_attention.query_key_value",),
        "o": ("self_attention.dense",),
        "up": ("mlp.dense_h_to_4h",),
        "down": ("mlp.dense_4h_to_h",),
    },
    layer_norms={"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    ends={
        "embedding": "word_embeddings",
        "embedding_norm": "word_embeddings_layernorm",
        "final_norm": "ln_f",
        "head": "lm_head",
    },
    by_head=frozenset({"qkv"}),
)

# ALiBi has no position table and its configurations may name no length; every BLOOM was trained on 2048 tokens.
_TRAINED_POSITIONS = 2048


def spec(config: ConfigFile) -> ModelSpec:
    if config.flag("apply_residual_connection_post_layernorm", False):
        raise config.refuse("apply_residual_connection_post_layernorm", "residuals taken after the norm are not implemented")
    hidden, heads = config.size(("hidden_size", "n_embed")), config.size(("n_head", "num_attention_heads"))
    return ModelSpec(
        family="bloom",
        layers=config.size(("n_layer", "num_hidden_layers")),
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab=config.size("vocab_size"),
        max_positions=config.size("seq_length", _TRAINED_POSITIONS),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        activation="gelu_tanh",
        gated=False,
        positions="alibi",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        tied_embeddings=config.flag("tie_word_embeddings", True),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=config.token_ids("eos_token_id"),
    )
