"""OPT: LayerNorm, ungated MLP, biases everywhere, learned positions whose table starts two rows late."""

from llmpq.model.activation import activation_name
from llmpq.model.config_file import ConfigFile
from llmpq.model.names import Names
from llmpq.model.spec import ModelSpec

NAMES = Names(
    prefixes=("model.decoder.", "decoder."),
    layer="layers.{}.",
    operators={
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.out_proj",),
        "up": ("fc1",),
        "down": ("fc2",),
    },
    layer_norms={"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"},
    ends={"embedding": "embed_tokens", "positions": "embed_positions", "final_norm": "final_layer_norm", "head": "lm_head"},
)

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
