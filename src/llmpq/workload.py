"""The requests to serve: prompts cut from a real text."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import token_windows


def write_workload(name: str, settings: Mapping[str, Any], text: str | Path, checkpoint_dir: str | Path, out: str | Path) -> dict[str, Any]:
    """Cut the prompts of a workload from the region of a text and write the ``workload`` artifact; returns it.

    ``settings`` is an entry of config/workload: ``requests`` prompts of ``prompt_tokens_min`` to ``prompt_tokens`` token ids (the lengths
    drawn evenly with ``seed``), ``new_tokens_min`` (if any) to ``new_tokens`` to generate, drawn alike. Raises ConfigError when the
    region is too short.
    """
    low, high, seed = settings["prompt_tokens_min"], settings["prompt_tokens"], settings["seed"]
    windows = token_windows(load_tokenizer(checkpoint_dir), text, settings["region"], windows=settings["requests"], tokens=high, seed=seed)
    draw = random.Random(seed)
    lengths = [high if low == high else draw.randint(low, high) for _ in windows]
    most = settings["new_tokens"]
    fewest = settings.get("new_tokens_min") or most
    limits = [most if fewest == most else draw.randint(fewest, most) for _ in windows]
    lengths[0], limits[0] = high, most  # memory is planned for the longest request, so there is one
    requests = [
        {"id": f"{number:04}", "prompt_tokens": ids[:length], "max_new_tokens": limit}
        for number, (ids, length, limit) in enumerate(zip(windows, lengths, limits, strict=True))
    ]
    body = {"name": name, "text": settings["text"], "ignore_eos": settings["ignore_eos"], "requests": requests}
    return artifacts.write(out, "workload", body, source="computed", inputs=[text], config=dict(settings))
