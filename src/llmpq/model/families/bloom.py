"""BLOOM: LayerNorm, ungated MLP with tanh GELU, ALiBi instead of positions, a norm after the embedding, q/k/v interleaved by head."""

from torch import Tensor

from llmpq.model.config_file import ConfigFile
from llmpq.model.spec import ModelSpec
from llmpq.model.weights import WeightFiles, concatenated

PREFIXES = ("transformer.", "")

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


def layer(files: WeightFiles, spec: ModelSpec, index: int) -> dict[str, Tensor]:
    at = f"h.{index}."
    fused = concatenated(files, "qkv", [f"{at}self_attention.query_key_value"], bias=True)
    return {
        **{name: _separated(tensor, spec) for name, tensor in fused.items()},
        **concatenated(files, "o", [f"{at}self_attention.dense"], bias=True),
        **concatenated(files, "up", [f"{at}mlp.dense_h_to_4h"], bias=True),
        **concatenated(files, "down", [f"{at}mlp.dense_4h_to_h"], bias=True),
        **concatenated(files, "attention_norm", [f"{at}input_layernorm"], bias=True),
        **concatenated(files, "mlp_norm", [f"{at}post_attention_layernorm"], bias=True),
    }


def _separated(rows: Tensor, spec: ModelSpec) -> Tensor:
    """Rows stored head by head as (q, k, v) → all of q, then k, then v."""
    if rows.shape[0] != 3 * spec.heads * spec.head_dim:
        return rows  # of another model: Checkpoint says so, with name and shapes
    by_head = rows.view(spec.heads, 3, spec.head_dim, *rows.shape[1:])
    return by_head.transpose(0, 1).reshape(rows.shape).contiguous()


def embedding(files: WeightFiles, spec: ModelSpec) -> dict[str, Tensor]:
    norm = concatenated(files, "embedding_norm", ["word_embeddings_layernorm"], bias=True)
    return {"embedding.weight": files.read("word_embeddings.weight"), **norm}


def head(files: WeightFiles, spec: ModelSpec) -> dict[str, Tensor]:
    norm = concatenated(files, "final_norm", ["ln_f"], bias=True)
    return {**norm, "head.weight": files.read("word_embeddings.weight" if spec.tied_embeddings else "lm_head.weight")}
