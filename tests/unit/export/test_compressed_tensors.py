"""compressed-tensors checkpoints, loaded by transformers: the very weights of the layer files, and our own model's logits with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import FAMILIES, Exported, checkpoint_of, ids, make

from llmpq.model.stage import StageModel

TOLERANCE = 1e-4
OPTIONS = ("16", "8", "4", "4-g32", "4-row", "16", "8-g64")


def loaded(directory: Path) -> Any:
    """The export as transformers loads it, computing in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids()).logits


def same_weights(case: Exported, model: Any, directory: Path) -> None:
    """The model's weights are, bit for bit, what the layer files stand for; the rest is the original's."""
    found = checkpoint_of(dict(model.state_dict()), case.peer.directory / "config.json", directory)
    from llmpq.model.checkpoint import Checkpoint

    original = Checkpoint(case.peer.directory)
    for layer in range(found.spec.layers):
        expected = {**original.layer(layer), **case.weights(layer)}
        tensors = found.layer(layer)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensors[name], tensor), f"layer {layer} at {case.options[layer]}: {name}"
    for ours, theirs in ((found.embedding(), original.embedding()), (found.head(), original.head())):
        for name, tensor in theirs.items():
            table = name in ("embedding.weight", "head.weight")
            assert torch.equal(ours[name], tensor.half().float() if table else tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_very_weights(family: str, tmp_path: Path) -> None:
    case = make(family, tmp_path, OPTIONS)
    record = case.export("compressed-tensors", tmp_path / "out")
    assert record["dtype"] == "float16"
    model = loaded(tmp_path / "out")
    found = logits(model)
    same_weights(case, model, tmp_path / "dense")
    ours = StageModel.load(tmp_path / "dense", None, first_layer=0, options=["32"] * len(OPTIONS), embedding="32", head="32")
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, ours.logits(ids()), atol=TOLERANCE, rtol=0)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 8 bits with one symmetric scale per token: 255 steps over twice the largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True) * 2 / 255
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def test_w8a8_rounds_activations_per_token_and_mixes_with_packed_layers(tmp_path: Path) -> None:
    case = make("llama", tmp_path, ("w8a8", "4", "16"))
    case.export("compressed-tensors", tmp_path / "out")
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert settings["format"] == "mixed-precision"
    assert [group["format"] for group in settings["config_groups"].values()] == ["int-quantized", "pack-quantized"]
    model = loaded(tmp_path / "out")
    found = logits(model)
    same_weights(case, model, tmp_path / "dense")
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    exact = logits(dense)
    for module in dense.model.layers[0].modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    torch.testing.assert_close(found, logits(dense), atol=TOLERANCE, rtol=0)
    assert (found - exact).abs().max() > 10 * TOLERANCE  # the rounding shows


def test_every_layer_is_in_one_group_or_left_alone(tmp_path: Path) -> None:
    """By the settings alone, as any reader would match them: first what is ignored, then the groups' targets; fused names too."""
    import re

    options = ("16", *("4",) * 10, "8", "w8a8")
    make("llama", tmp_path, options).export("compressed-tensors", tmp_path / "out")
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    found: list[str] = []
    for layer in range(len(options)):
        name = f"model.layers.{layer}.self_attn.q_proj"
        if any(re.match(pattern.removeprefix("re:"), name) for pattern in settings["ignore"]):
            found.append("16")
            continue
        (group,) = [g for g in settings["config_groups"].values() if any(re.match(p.removeprefix("re:"), name) for p in g["targets"])]
        weights = group["weights"]
        found.append({(4, 64): "4", (8, None): "w8a8" if group["input_activations"] else "8"}[weights["num_bits"], weights["group_size"]])
    assert tuple(found) == options
    targets = [pattern.removeprefix("re:") for group in settings["config_groups"].values() for pattern in group["targets"]]
    assert not [name for name in ("model.layers.1.self_attn", "model.layers.1.mlp", "lm_head") for p in targets if re.match(p, name)]
    assert "lm_head" in settings["ignore"]


def test_all_layers_at_16_bits_need_no_quantisation(tmp_path: Path) -> None:
    case = make("qwen2-gqa", tmp_path, ("16", "16"))
    case.export("compressed-tensors", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    same_weights(case, loaded(tmp_path / "out"), tmp_path / "dense")


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_model_at_4_8_and_16_bits(tmp_path: Path, real_model_dir: Path) -> None:
    """SmolLM2 with layers at all three widths: logits of transformers and of our model with the same dequantised weights."""
    from serve_cases import quantised_layers

    from llmpq.export.assignment import Assignment
    from llmpq.export.targets import target_named
    from llmpq.export.write import export_checkpoint

    options = tuple(("16", "8", "4")[layer % 3] for layer in range(30))
    layers = quantised_layers(real_model_dir, tmp_path / "layers", options)
    export_checkpoint(real_model_dir, layers, Assignment("test", options), target_named("compressed-tensors"), tmp_path / "out")
    torch.set_num_threads(1)
    model = loaded(tmp_path / "out")
    prompt = torch.randint(100, 49000, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(prompt).logits
    checkpoint_of(dict(model.state_dict()), real_model_dir / "config.json", tmp_path / "dense")
    ours = StageModel.load(tmp_path / "dense", None, first_layer=0, options=["32"] * 30, embedding="32", head="32")
    torch.testing.assert_close(found, ours.logits(prompt), atol=5e-4, rtol=0)  # logits up to 29
