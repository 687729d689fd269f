"""A tiny random Llama, made once."""

from pathlib import Path

import pytest
import serve_cases


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint directory of serve_cases.tiny_llama."""
    return serve_cases.tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
