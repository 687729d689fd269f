"""Reading a checkpoint: one layer at a time, from one file or shards; every bad input has its own single message."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmpq.errors import LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.spec import ModelSpec


@pytest.fixture
def model(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def configure(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def message(directory: Path) -> str:
    """The complaint about the directory: one line, for the user."""
    with pytest.raises(LlmpqError) as caught:
        Checkpoint(directory).layer(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layer_has_fused_operators_of_the_shapes_the_spec_promises(model: Path) -> None:
    checkpoint, raw = Checkpoint(model), load_file(model / "model.safetensors")
    tensors = checkpoint.layer(1)
    assert {name: tuple(tensors[f"{name}.weight"].shape) for name in checkpoint.spec.operators()} == checkpoint.spec.operators()
    assert checkpoint.spec.operators() == {"qkv": (128, 64), "o": (64, 64), "gate_up": (256, 64), "down": (64, 128)}
    assert torch.equal(tensors["qkv.weight"][64:96], raw["model.layers.1.self_attn.k_proj.weight"])
    assert torch.equal(tensors["gate_up.weight"][128:], raw["model.layers.1.mlp.up_proj.weight"])


def test_half_precision_weights_are_widened(model: Path) -> None:
    raw = load_file(model / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in raw.items()}, model / "model.safetensors")
    weight = Checkpoint(model).layer(0)["o.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, raw["model.layers.0.self_attn.o_proj.weight"].bfloat16().float())


def shard(directory: Path) -> None:
    """One file for each layer and one for the rest, with an index, as the hub has large models."""
    raw = load_file(directory / "model.safetensors")
    placed = {name: f"part-{name.split('.')[2] if '.layers.' in name else 'ends'}.safetensors" for name in raw}
    for file in set(placed.values()):
        save_file({name: raw[name] for name in raw if placed[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (directory / "model.safetensors").unlink()


def test_shards_give_the_same_tensors(tiny_llama_dir: Path, model: Path) -> None:
    shard(model)
    whole, parts = Checkpoint(tiny_llama_dir), Checkpoint(model)
    for expected, found in ((whole.layer(2), parts.layer(2)), (whole.embedding(), parts.embedding()), (whole.head(), parts.head())):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_layer_reads_no_other_layers_file(model: Path) -> None:
    shard(model)
    (model / "part-3.safetensors").unlink()
    assert Checkpoint(model).layer(2)
    with pytest.raises(LlmpqError, match=r"part-3\.safetensors: no such file, though the checkpoint's index names it"):
        Checkpoint(model).layer(3)


def test_older_hub_files_without_the_model_prefix_are_found(model: Path) -> None:
    raw = load_file(model / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in raw.items()}, model / "model.safetensors")
    assert torch.equal(Checkpoint(model).layer(0)["o.weight"], raw["model.layers.0.self_attn.o_proj.weight"])


def test_generation_config_names_more_ends(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert ModelSpec.from_directory(model).eos_token_ids == (5, 7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gpt9"}, "model_type 'gpt9' is not supported; known families: bloom, llama, mistral, opt, qwen2, qwen3"),
        ({"model_type": None}, "key 'model_type' is missing"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"hidden_size": "64"}, "key 'hidden_size' is '64', expected a positive whole number"),
        ({"num_hidden_layers": 0}, "key 'num_hidden_layers' is 0, expected a positive whole number"),
        ({"rms_norm_eps": True}, "key 'rms_norm_eps' is True, expected a number"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3 KV heads"),
        ({"head_dim": 15}, "rotary positions need an even head size, found 15"),
        ({"hidden_act": "relu6"}, "key 'hidden_act' is 'relu6': this activation is not implemented"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn' is not implemented"),
        ({"rope_scaling": {"type": "linear"}}, "rotary scaling 'linear' needs the number(s) factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary embeddings are not implemented"),
        ({"quantization_config": {"quant_method": "gptq"}}, "an already quantised checkpoint; give the full-precision one"),
        ({"eos_token_id": ["x"]}, "key 'eos_token_id' is ['x'], expected a token id or a list of token ids"),
        ({"eos_token_id": [True]}, "key 'eos_token_id' is [True], expected a token id"),
        ({"rope_parameters": None, "rope_theta": "big"}, "key 'rope_theta' is 'big', expected a number"),
        ({"rope_parameters": {"rope_theta": "big"}}, "the rotary base is 'big', expected a positive number"),
        ({"intermediate_size": 130}, "layer 0 gate_up.weight is 256×64, but config.json implies 260×64"),
        ({"attention_bias": True}, "the checkpoint has no tensor 'model.layers.0.self_attn.q_proj.bias'"),
    ],
)
def test_configurations_that_cannot_be_run_exactly_are_refused(model: Path, changes: dict[str, Any], expected: str) -> None:
    configure(model, **changes)
    assert expected in message(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 32}, "embeddings narrower than hidden_size = 64"),
        ({"model_type": "opt", "hidden_size": 64, "layer_norm_elementwise_affine": False}, "layer norms without weights"),
        ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "residuals taken after the norm"),
    ],
)
def test_variants_of_other_families_are_refused(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, **config}))
    assert expected in message(tmp_path)


def test_a_sliding_window_limits_the_context_and_only_where_it_is_in_use(model: Path) -> None:
    configure(model, model_type="mistral", sliding_window=48)
    spec = ModelSpec.from_directory(model)
    spec.check_context(48)
    with pytest.raises(LlmpqError, match="49 tokens are more than the mistral model allows: its sliding window of 48 tokens"):
        spec.check_context(49)
    configure(model, model_type="qwen2", use_sliding_window=False)
    assert ModelSpec.from_directory(model).max_context == 128


@pytest.mark.parametrize(("family", "window"), [("mistral", 4096), ("qwen2", 4096), ("qwen3", 4096), ("llama", None)])
def test_a_window_that_is_not_named_is_the_familys_own(model: Path, family: str, window: int | None) -> None:
    """As transformers reads it: its default where the key is missing, none where it is null."""
    from transformers import AutoConfig

    configure(model, model_type=family, use_sliding_window=True, max_position_embeddings=8192)
    for expected in (window, None):
        assert ModelSpec.from_directory(model).sliding_window == expected
        assert getattr(AutoConfig.from_pretrained(model), "sliding_window", None) == expected
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "sliding_window": None}))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (32, 32), "k_proj.weight is 32×32, which does not go with layers.0.self_attn.q_proj"),
        ("model.layers.0.input_layernorm.weight", (63,), "layer 0 attention_norm.weight is 63, but config.json implies 64"),
        ("model.layers.0.mlp.down_proj.weight", (64, 127), "layer 0 down.weight is 64×127, but config.json implies 64×128"),
        ("model.layers.0.self_attn.q_proj.weight", (), "q_proj.weight is a single number"),
    ],
)
def test_every_tensor_has_the_shape_that_the_configuration_implies(model: Path, name: str, shape: tuple[int, ...], expected: str) -> None:
    save_file({**load_file(model / "model.safetensors"), name: torch.zeros(shape)}, model / "model.safetensors")
    assert expected in message(model)


def test_the_ends_have_the_shape_that_the_configuration_implies(model: Path) -> None:
    save_file({**load_file(model / "model.safetensors"), "model.norm.weight": torch.zeros(65)}, model / "model.safetensors")
    with pytest.raises(LlmpqError, match=r"final_norm.weight is 65, but config.json implies 64"):
        Checkpoint(model).head()


def test_missing_and_damaged_files_are_named(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: not a complete safetensors file" in message(model)
    weights.unlink()
    assert "model.safetensors: no such file; prepare the model first" in message(model)
    (model / "pytorch_model.bin").touch()
    assert "no such file; pytorch_model.bin is a pickle: `llmpq prepare` converts it" in message(model)
    (model / "config.json").write_text('{"model_type": "lla')
    assert "config.json: not a complete JSON file" in message(model)
    (model / "config.json").unlink()
    assert "config.json: no such file; a model directory needs config.json" in message(model)


def test_a_missing_tensor_and_an_integer_one_are_named(model: Path) -> None:
    raw = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in raw.items() if name != "model.layers.0.mlp.down_proj.weight"}
    save_file(kept, model / "model.safetensors")
    assert "the checkpoint has no tensor 'model.layers.0.mlp.down_proj.weight'" in message(model)
    save_file({**kept, "model.layers.0.mlp.down_proj.weight": torch.zeros(64, 128, dtype=torch.int8)}, model / "model.safetensors")
    assert "is of type torch.int8, expected floating point weights" in message(model)


def test_a_layer_that_is_not_there(tiny_llama_dir: Path) -> None:
    with pytest.raises(LlmpqError, match="there is no layer 4; the model has layers 0 to 3"):
        Checkpoint(tiny_llama_dir).layer(4)
