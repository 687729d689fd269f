"""vLLM's interpreter, or a skip that says how to have one."""

import os
from pathlib import Path

import pytest

from llmpq.vllm_serve.process import interpreter


@pytest.fixture(scope="session")
def python() -> Path:
    """Of the environment that `make vllm-cpu` builds."""
    return _of("LLMPQ_TEST_VLLM", "vLLM loads for a minute a model: run `make test-vllm`")


@pytest.fixture(scope="session")
def gpu_python() -> Path:
    """Of an environment with vLLM for the GPU of this machine."""
    return _of("LLMPQ_TEST_VLLM_GPU", "vLLM for a GPU is wanted: run `make test-vllm-gpu` where there is one")


def _of(variable: str, why_not: str) -> Path:
    if variable not in os.environ:
        pytest.skip(why_not)
    return interpreter(Path(os.environ[variable]))
