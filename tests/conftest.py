"""Fixtures that several packages share: the real model, and a tiny random one that needs no download and no transformers."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmpq.bench_faults.tiny_model import write_tiny_llama

REAL_MODEL = Path(__file__).parents[1] / "resources/models/smollm2-135m-instruct/checkpoint"


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """The prepared SmolLM2 checkpoint; `make test` prepares it first."""
    if not (REAL_MODEL / "model.safetensors").is_file():
        pytest.fail(f"{REAL_MODEL} is not there: run `make test`, or `llmpq prepare --model smollm2-135m-instruct`, or deselect real_model")
    return REAL_MODEL


@pytest.fixture(scope="session")
def write_llama() -> Callable[..., Path]:
    """The function write_tiny_llama, for tests that want other sizes."""
    return write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer Llama checkpoint (hidden 64, 4 heads, 2 KV heads, vocabulary 96)."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def calibration(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the tiny Llama's inputs on 12 random sequences of 32 tokens."""
    from llmpq.quant.calibrate import calibrate

    draw, path = random.Random(1), tmp_path_factory.mktemp("calibration") / "gptq.safetensors"
    calibrate(tiny_llama_dir, [[draw.randrange(96) for _ in range(32)] for _ in range(12)], path, {})
    return path
