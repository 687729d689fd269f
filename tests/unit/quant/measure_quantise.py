"""Run in a process of its own: quantise one OPT-shaped layer of random weights and print what it took, as one line of JSON.

    python tests/unit/quant/measure_quantise.py FOLDER HIDDEN FFN OPTIONS

Checkpoint and calibration are made in FOLDER by a first process, unless they are there. ``peak_bytes`` is the most that was resident
(VmHWM), ``before_bytes`` what the process had before it began, ``weight_bytes`` and ``hessian_bytes`` the layer's fp32 weights and its
largest Hessian.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmpq.model.checkpoint import Checkpoint
from llmpq.quant.calibrate import calibrate
from llmpq.quant.quantise import quantise_group

VOCAB, TOKENS = 96, 32


def write_model(folder: Path, hidden: int, ffn: int) -> None:
    config = {
        "model_type": "opt", "hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": ffn, "num_hidden_layers": 1,
        "num_attention_heads": hidden // 64, "vocab_size": VOCAB, "max_position_embeddings": 64, "activation_function": "relu",
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    draw, at = torch.Generator().manual_seed(0), "model.decoder.layers.0."
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")} | {"fc1": (ffn, hidden), "fc2": (hidden, ffn)}
    tensors = {f"{at}{name}.weight": torch.randn(*shape, generator=draw) / shape[1] ** 0.5 for name, shape in shapes.items()}
    tensors |= {f"{at}{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for norm in (f"{at}self_attn_layer_norm", f"{at}final_layer_norm", "model.decoder.final_layer_norm"):
        tensors |= {f"{norm}.weight": torch.ones(hidden), f"{norm}.bias": torch.zeros(hidden)}
    tensors["model.decoder.embed_tokens.weight"] = torch.randn(VOCAB, hidden, generator=draw)
    tensors["model.decoder.embed_positions.weight"] = torch.zeros(66, hidden)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def prepare(folder: Path, hidden: int, ffn: int) -> None:
    write_model(folder / "checkpoint", hidden, ffn)
    draw = random.Random(0)
    windows = [[draw.randrange(VOCAB) for _ in range(TOKENS)] for _ in range(8)]
    calibrate(folder / "checkpoint", windows, folder / "calibration.safetensors", {})


def memory(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(status[status.index(f"{key}:") + 1]) * 1024


def measure(folder: Path, options: list[str]) -> dict[str, object]:
    shapes = Checkpoint(folder / "checkpoint").spec.operators().values()
    before, started, processor = memory("VmRSS"), time.perf_counter(), time.process_time()
    quantise_group(
        folder / "checkpoint", folder / "calibration.safetensors", folder / "layers-000-000", first=0, last=0, options=options, settings={}
    )
    return {
        "options": options,
        "weight_bytes": 4 * sum(rows * columns for rows, columns in shapes),
        "hessian_bytes": 4 * max(columns for _, columns in shapes) ** 2,
        "before_bytes": before,
        "peak_bytes": memory("VmHWM"),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    folder, hidden, ffn, options = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if options == "-":
        prepare(folder, hidden, ffn)
        return
    if not (folder / "calibration.safetensors").is_file():
        subprocess.run([sys.executable, __file__, *sys.argv[1:4], "-"], check=True)
    print(json.dumps(measure(folder, options.split(","))))


if __name__ == "__main__":
    main()
