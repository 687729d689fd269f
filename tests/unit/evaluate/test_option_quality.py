"""Every option on the real model, quantised as by the workflow, through its serving kernel, against 16 bit on the same windows."""

from pathlib import Path

import pytest
import torch

from llmpq.evaluate.quality import evaluate_quality
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.calibrate import calibrate
from llmpq.quant.kernels.cpu import ACTIVATION_LEVELS
from llmpq.quant.quantise import quantise_group
from llmpq.text import prepare_text, token_windows

LAYERS = 30
SEVEN_BITS = ACTIVATION_LEVELS < 127
RATIOS = {
    "8": (0.99, 1.02),
    "w8a8-outlier": (1.0, 1.08) if SEVEN_BITS else (1.0, 1.03),
    "w8a8": (1.03, 1.3) if SEVEN_BITS else (1.0, 1.06),
    "4": (1.1, 1.8),
    "3": (2.0, 8.0),
}
"""Perplexity over that of 16 bit, rounded to nearest (GPTQ would take a minute more). docs/log.md has, on 6 other windows of this text,
1.000, 1.018, 1.102, 1.34 and 3.64; these two windows gave 0.999, 1.011, 1.101, 1.48 and 5.23
with activations of 7 bits, and 1.006 and 1.011 for the second and third with 8: the bounds leave room. A kernel called
wrongly is far outside: one activation scale for a whole tensor makes w8a8 3.6, or millions."""


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.timeout(900)  # 110 s beside other work
def test_each_option_does_its_own_damage_and_no_more(real_model_dir: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    text = prepare_text("python-docs", tmp_path / "python-docs.txt")
    tokenizer = load_tokenizer(real_model_dir)
    calibrate(real_model_dir, token_windows(tokenizer, text, (0.0, 0.2), windows=2, tokens=128), tmp_path / "c.safetensors", {"seed": 0})
    windows = torch.tensor(token_windows(tokenizer, text, (1 / 3, 1.0), windows=2, tokens=512))
    group = tmp_path / "quantised" / "layers-000-029"
    quantise_group(
        real_model_dir, tmp_path / "c.safetensors", group, first=0, last=LAYERS - 1, options=list(RATIOS), settings={"method": "rtn"}
    )
    found = {}
    for option in ("16", *RATIOS):
        folder = None if option == "16" else [group]
        found[option] = evaluate_quality(real_model_dir, folder, [option] * LAYERS, {"docs": windows}, progress=lambda _: None)["texts"][0]
    ratios = {option: found[option]["perplexity"] / found["16"]["perplexity"] for option in RATIOS}
    print("perplexity over 16 bit:", {option: round(ratio, 3) for option, ratio in ratios.items()}, found["16"]["perplexity"])
    outside = {option: ratio for option, ratio in ratios.items() if not RATIOS[option][0] < ratio < RATIOS[option][1]}
    assert not outside
    assert list(ratios.values()) == sorted(ratios.values())
