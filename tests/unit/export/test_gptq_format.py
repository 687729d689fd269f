"""GPTQ checkpoints, read by a reader of this file's own, written from the format's definition: codes, zero points, scales, groups, dynamic.

The definition (AutoGPTQ's linear layer, version 1 of the format): output o of a module with inputs x is Σ_i scale[g(i), o] · (code[i, o] −
zero[g(i), o]) · x[i] + bias[o]. Codes of b bits lie along the inputs in 32-bit words, as one string of bits, lowest first; zero points less
one likewise along the outputs.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import FAMILIES, Exported, checkpoint_of, make
from safetensors.torch import load_file

from llmpq import cli
from llmpq.errors import LlmpqError
from llmpq.quant.options import OPTIONS


def numbers(words: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of ``bits`` bits along the first axis of int32 ``words``, bit by bit."""
    as_bits = (words.astype(np.uint32)[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    string = as_bits.reshape(-1, words.shape[1])
    found = string.reshape(len(string) // bits, bits, words.shape[1])
    return (found * (1 << np.arange(bits))[None, :, None]).sum(1)


def widths(settings: dict[str, Any], module: str) -> dict[str, int] | None:
    """Bits and group size of a module, or None where it is not quantised: the first pattern of ``dynamic`` that matches decides."""
    for pattern, changes in settings.get("dynamic", {}).items():
        if re.match(pattern[2:], module):
            return None if pattern[:2] == "-:" else {"bits": settings["bits"], "group_size": settings["group_size"], **changes}
    return {"bits": settings["bits"], "group_size": settings["group_size"]}


def dense(tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The checkpoint with every quantised module as a plain fp32 weight [out, in]."""
    found = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))}
    for module in (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        qweight, qzeros, scales, g_idx = (tensors[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
        own = widths(settings, module)
        assert own is not None, module
        codes = numbers(qweight.numpy(), own["bits"])
        zeros = numbers(qzeros.numpy().T, own["bits"]).T + 1
        groups = g_idx.numpy()
        size = own["group_size"] if own["group_size"] > 0 else len(groups)
        assert groups.tolist() == [column // size for column in range(len(codes))]
        weight = scales.float().numpy()[groups] * (codes - zeros[groups])
        found[f"{module}.weight"] = torch.from_numpy(weight.T.astype(np.float32))
    plain = [name for name, tensor in found.items() if name.endswith("_proj.weight") and f"{name[:-7]}.qweight" not in tensors]
    assert all(widths(settings, name.removesuffix(".weight")) is None for name in plain)
    return found


def settings_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def compare(case: Exported, out: Path, directory: Path) -> None:
    """Every layer's operators are bit for bit what the layer files stand for."""
    found = checkpoint_of(dense(load_file(out / "model.safetensors"), settings_of(out)), case.peer.directory / "config.json", directory)
    for layer in range(found.spec.layers):
        tensors = found.layer(layer)
        for name, expected in case.weights(layer).items():
            assert torch.equal(tensors[name], expected), f"layer {layer} at {case.options[layer]}: {name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_independent_reader_finds_the_very_weights(family: str, tmp_path: Path) -> None:
    case = make(family, tmp_path, ("4", "16", "8", "3", "2", "4", "4-row", "3-g32", "8-g64"))
    case.export("gptq", tmp_path / "out")
    settings = settings_of(tmp_path / "out")
    assert (settings["bits"], settings["group_size"], settings["sym"], settings["desc_act"]) == (4, 64, True, False)
    assert len(settings["dynamic"]) == 7
    compare(case, tmp_path / "out", tmp_path / "dense")


def test_a_uniform_checkpoint_needs_no_dynamic(tmp_path: Path) -> None:
    case = make("llama", tmp_path, ("8", "8"))
    case.export("gptq", tmp_path / "out")
    assert "dynamic" not in settings_of(tmp_path / "out")
    compare(case, tmp_path / "out", tmp_path / "dense")


def test_scales_that_fp16_does_not_hold_stay_bf16_and_readers_compute_in_it(tmp_path: Path) -> None:
    """A row of weights near 1e-6 at 8 bits has a scale near 1e-8, below fp16's smallest number; a row of zeros has any."""
    from safetensors.torch import save_file
    from serve_cases import quantised_layers

    case = make("llama", tmp_path, ("8", "16"))
    path = case.peer.directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"][0] = 1e-6
    tensors["model.layers.0.self_attn.o_proj.weight"][0] = 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    case = Exported(case.peer, quantised_layers(case.peer.directory, tmp_path / "again", case.options), case.options)
    assert case.export("gptq", tmp_path / "out")["dtype"] == "bfloat16"
    written = load_file(tmp_path / "out/model.safetensors")
    kinds = {name: written[f"model.layers.0.{name}.scales"].dtype for name in ("mlp.down_proj", "mlp.up_proj", "self_attn.o_proj")}
    assert kinds == {"mlp.down_proj": torch.bfloat16, "mlp.up_proj": torch.float16, "self_attn.o_proj": torch.float16}
    compare(case, tmp_path / "out", tmp_path / "dense")


def test_shapes_that_fill_no_words_are_refused(
    tmp_path: Path, write_llama: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_cases import quantised_layers

    model = write_llama(tmp_path / "model", intermediate_size=72)
    quantised_layers(model, tmp_path / "layers", ["3-row"] * 4)
    call = ["export", "--option", "3-row", "--checkpoint", str(model), "--quantised", str(tmp_path / "layers")]
    assert cli.main([*call, "--to", "gptq", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "layer 0 at option '3-row': 72 outputs of 3 bits do not fill whole 32-bit words" in told
    assert not (tmp_path / "out").exists()


def test_options_of_the_table_are_all_either_written_or_refused_with_a_way_out(tmp_path: Path) -> None:
    """Every option that exists: what is refused names another option or format; what is not is symmetric and has no outliers."""
    from llmpq.export.targets import TARGETS

    for target in TARGETS.values():
        for option in OPTIONS.values():
            reason = target.refusal(option)
            if reason is None:
                assert option.symmetric
                assert not option.outliers
            else:
                assert "; choose " in reason
                suggested = re.search(r"; choose ([\w-]+)", reason)
                assert suggested is not None
                assert target.refusal(OPTIONS[suggested[1]]) is None, (target.name, option.name)
    with pytest.raises(LlmpqError, match="unknown checkpoint format 'awq'; known are compressed-tensors, gptq"):
        make("llama", tmp_path, ("16",)).export("awq", tmp_path / "out")
