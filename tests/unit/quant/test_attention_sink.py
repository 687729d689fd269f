"""On the real model: GPTQ keeps the value of the token that half of all attention goes to (the first) at least as well as the others."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.calibrate import calibrate
from llmpq.quant.calibration import Calibration
from llmpq.quant.gptq import factorise, gptq
from llmpq.quant.grid import Grid
from llmpq.quant.rtn import rtn

LAYER, WINDOWS, TOKENS = 20, 4, 256


@pytest.mark.real_model
@pytest.mark.slow
def test_the_attention_sinks_value_is_not_spoilt(real_model_dir: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(real_model_dir).encode("\n".join(topics[name] for name in sorted(topics))[:80000]).ids
    windows = [ids[start : start + TOKENS] for start in range(0, (WINDOWS + 1) * TOKENS, TOKENS)]
    calibrate(real_model_dir, windows[:WINDOWS], tmp_path / "c.safetensors", {})
    checkpoint = Checkpoint(real_model_dir)
    tensors, spec = checkpoint.layer(LAYER), checkpoint.spec
    before = StageModel.load(real_model_dir, None, first_layer=0, options=["32"] * LAYER, embedding="16")
    hidden = before.hidden(torch.tensor(windows[WINDOWS:]))[0]
    inputs = torch.nn.functional.rms_norm(hidden, (spec.hidden,), tensors["attention_norm.weight"], spec.norm_eps)
    values = slice((spec.heads + spec.kv_heads) * spec.head_dim, None)
    weight, grid = tensors["qkv.weight"][values], Grid(4, 64)
    statistics = Calibration(tmp_path / "c.safetensors").operator(LAYER, "qkv")
    found = {"gptq": gptq(weight, factorise(statistics.hessian, damping=0.01), grid), "rtn": rtn(weight, grid)}
    errors = {name: (inputs @ (q.dequantised(64) - weight).t()).square().sum(1) for name, q in found.items()}
    first = {name: float(error[0]) for name, error in errors.items()}
    median = {name: float(error.median()) for name, error in errors.items()}
    assert first["gptq"] < first["rtn"] / 2
    assert median["gptq"] < median["rtn"]
