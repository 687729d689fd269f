"""How good what was timed is: perplexity of ours on the packaged texts, through the kernels that serve."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from llmpq.bench.isolated import in_fresh_process
from llmpq.bench_serve.cases import QUALITY_REGION, QUALITY_TOKENS, QUALITY_WINDOWS
from llmpq.bench_serve.ours import Ours
from llmpq.evaluate.quality import evaluate_quality
from llmpq.model.spec import ModelSpec
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.layer_index import Place, find_layer_file, layers_digest
from llmpq.quant.options import weight_option
from llmpq.text import scored_windows


def perplexities(checkpoint: Path, quantised: Sequence[Path], system: Ours, texts: Sequence[Path], threads: int) -> dict[str, float]:
    """Perplexity by the name of each text, in a process of its own with ``threads``. Raises LlmpqError, also where files are missing."""
    found: dict[str, float] = in_fresh_process(f"evaluating {system.name}", _evaluated, checkpoint, list(quantised), system, texts, threads)
    return found


def weights_digest(checkpoint: Path, quantised: Sequence[Path], system: Ours) -> str:
    """Which weights ``system`` has; ArtifactError where a file is missing."""
    options = system.options(ModelSpec.from_directory(checkpoint))
    places: list[tuple[Place, str]] = [*enumerate(options), ("embedding", system.embedding), ("head", system.head)]
    files = [find_layer_file(list(quantised), place, option) for place, option in places if weight_option(option).quantised]
    return hashlib.sha256((system.name + layers_digest(files)).encode()).hexdigest()[:16]


def _evaluated(checkpoint: Path, quantised: list[Path], system: Ours, texts: Sequence[Path], threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(checkpoint)
    cut = {"windows": QUALITY_WINDOWS, "tokens": QUALITY_TOKENS}
    windows = {text.stem: torch.tensor(scored_windows(tokenizer, text, QUALITY_REGION, **cut)) for text in texts}
    options, ends = system.options(ModelSpec.from_directory(checkpoint)), (system.embedding, system.head)
    body = evaluate_quality(checkpoint, system.folders(quantised), options, windows, ends=ends, progress=lambda _: None)
    return {str(row["text"]): float(row["perplexity"]) for row in body["texts"]}
