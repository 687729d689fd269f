"""The activations of the supported families: our names and Hugging Face's for them. Without torch, as all that only reads a config.json."""

from llmpq.model.config_file import ConfigFile

_PUBLISHED_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_name(config: ConfigFile, key: str, default: str) -> str:
    """Our name of the activation in config.json; raise ModelError when it is not one of those implemented."""
    name = config.text(key, default)
    if name not in _PUBLISHED_NAMES:
        raise config.refuse(key, f"this activation is not implemented (known: {', '.join(_PUBLISHED_NAMES)})")
    return _PUBLISHED_NAMES[name]
