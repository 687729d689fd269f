"""The package's environment when it is missing or broken; with it, `make test-oracle` runs tests/oracle."""

import sys
from pathlib import Path

import pytest
import torch

from llmpq.errors import LlmpqError
from llmpq.quant.auto_gptq import AutoGptq
from llmpq.quant.calibrate import calibrate
from llmpq.quant.grid import Grid
from llmpq.quant.quantise import quantise_group


def test_a_missing_environment_is_said_before_anything_is_done(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(tiny_llama_dir, [[1, 2, 3, 4]] * 2, tmp_path / "c.safetensors", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LlmpqError, match=r"\.envs/auto-gptq is not there or not complete; build it with `make auto-gptq`"):
        quantise_group(
            tiny_llama_dir, tmp_path / "c.safetensors", tmp_path / "out", first=0, last=0, options=["4"], settings={"method": "auto-gptq"}
        )
    assert not list(tmp_path.glob("out*"))


def test_an_environment_that_lacks_the_package_is_named(tmp_path: Path) -> None:
    """This very Python stands in for one: it has torch and safetensors, but no auto-gptq."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "lib/python3.11/site-packages/auto_gptq-0.7.1.dist-info").mkdir(parents=True)
    with AutoGptq(tmp_path) as package:
        assert package.version == "0.7.1"
        with pytest.raises(LlmpqError, match=r"No module named 'auto_gptq'.*delete it and `make auto-gptq`"):
            package.quantise(torch.ones(16, 64), torch.eye(64), Grid(4, 64), damping=0.01)
