"""OPT: LayerNorm, ungated MLP, biases everywhere, learned positions whose table starts two rows late."""

from torch import Tensor

from llmpq.model.activation import activation_name
from llmpq.model.config_file import ConfigFile
from llmpq.model.spec import ModelSpec
from llmpq.model.weights import WeightFiles, concatenated

PREFIXES = ("model.decoder.", "decoder.")

# OPT reserves the first two rows of its position table (inherited from fairseq's padding index).
_POSITION_OFFSET = 2


def spec(config: ConfigFile) -> ModelSpec:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if config.size("word_embed_proj_dim", hidden) != hidden:
        raise config.refuse("word_embed_proj_dim", f"embeddings narrower than hidden_size = {hidden} (OPT-350m) are not implemented")
    if not config.flag("layer_norm_elementwise_affine", True):
        raise config.refuse("layer_norm_elementwise_affine", "layer norms without weights are not implemented")
    bias, norm_first = config.flag("enable_bias", True), config.flag("do_layer_norm_before", True)
    return ModelSpec(
        family="opt",
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        ffn=config.size("ffn_dim"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings"),
        norm="layer",
        norm_eps=1e-5,
        activation=activation_name(config, "activation_function", "relu"),
        gated=False,
        positions="learned",
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        norm_first=norm_first,
        final_norm=norm_first and not config.flag("_remove_final_layer_norm", False),
        tied_embeddings=config.flag("tie_word_embeddings", True),
        position_offset=_POSITION_OFFSET,
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=config.token_ids("eos_token_id"),
    )


def layer(files: WeightFiles, spec: ModelSpec, index: int) -> dict[str, Tensor]:
    at = f"layers.{index}."
    return {
        **concatenated(files, "qkv", [f"{at}self_attn.{name}_proj" for name in "qkv"], bias=spec.qkv_bias),
        **concatenated(files, "o", [f"{at}self_attn.out_proj"], bias=spec.o_bias),
        **concatenated(files, "up", [f"{at}fc1"], bias=spec.mlp_bias),
        **concatenated(files, "down", [f"{at}fc2"], bias=spec.mlp_bias),
        **concatenated(files, "attention_norm", [f"{at}self_attn_layer_norm"], bias=True),
        **concatenated(files, "mlp_norm", [f"{at}final_layer_norm"], bias=True),
    }


def embedding(files: WeightFiles, spec: ModelSpec) -> dict[str, Tensor]:
    return {"embedding.weight": files.read("embed_tokens.weight"), "positions.weight": files.read("embed_positions.weight")}


def head(files: WeightFiles, spec: ModelSpec) -> dict[str, Tensor]:
    norm = concatenated(files, "final_norm", ["final_layer_norm"], bias=True) if spec.final_norm else {}
    return {**norm, "head.weight": files.read("embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight")}
