"""Lines of docs/bench-backends.jsonl and the page made of them."""

from pathlib import Path
from typing import Any

import pytest

from llmpq.bench_backends import record
from llmpq.bench_backends.page import page
from llmpq.bench_backends.record import Line
from llmpq.bench_backends.run import Served
from llmpq.cli import main
from llmpq.errors import ConfigError, LlmpqError


def made(backend: str = "native", **changes: Any) -> Line:
    """A run of ten seconds."""
    given = {
        "date": "2026-11-23T10:00:00+00:00", "revision": "abc", "machine": "a machine", "load": 0.5, "round": 1, "engine": "llmpq",
        "experiment": "pair-vllm", "plan": "a: 2 × 16", "plan_sha256": "c0de", "requests": 4, "prompt_tokens": 8, "new_tokens": 100,
        "tokens_per_s": 10.0, "prefill_s": 4.0, "decode_s": 6.0, "total_s": 10.0, "cpu_s": 18.0, "load_s": 2.0,
    }  # fmt: skip
    return Line(backend=backend, **{**given, **changes})


def test_lines_come_back_as_they_were_stored(tmp_path: Path) -> None:
    lines = [made(), made("vllm", engine="vllm 0.32.0", predicted_s=9.0)]
    for line in lines:
        record.append(tmp_path / "lines.jsonl", line)
    assert record.read(tmp_path / "lines.jsonl") == lines


def test_a_line_of_another_backend_is_refused(tmp_path: Path) -> None:
    record.append(tmp_path / "lines.jsonl", made("ollama"))
    with pytest.raises(LlmpqError, match=r"line 1: key 'backend' is 'ollama'; known: native, vllm"):
        record.read(tmp_path / "lines.jsonl")


def test_the_page_has_medians_and_spread_of_the_newest_sitting() -> None:
    older = made(tokens_per_s=99.0, revision="old", date="2026-11-22T10:00:00+00:00")
    own = [made(tokens_per_s=speed, round=number) for number, speed in enumerate((10.0, 30.0, 20.0), start=1)]
    other = [made("vllm", engine="vllm 0.32.0", predicted_s=8.0, round=number, load=3.0) for number in (1, 2, 3)]
    text = page([older, *own, *other])
    assert "| llmpq | 3 | 20.0 (10.0 – 30.0) | 4.0 (4.0 – 4.0) | 6.0 (6.0 – 6.0) | 18.0 (18.0 – 18.0) | 2.0 (2.0 – 2.0) |  |  |" in text
    assert "| vllm 0.32.0 | 3 |" in text
    assert "| 8.00 | 0.80 |" in text
    assert "load before the starts: 0.5 to 3" in text
    assert "99.0" not in text
    assert "Not run yet" in page([])


def test_an_experiment_that_has_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan.json is not there; run the experiment first: snakemake .*experiments=nobody"):
        Served(tmp_path / "nobody", "llmpq").check()


def test_the_command_writes_the_page_from_what_is_stored(tmp_path: Path) -> None:
    record.append(tmp_path / "lines.jsonl", made())
    given = ["--results", str(tmp_path / "lines.jsonl"), "--out", str(tmp_path / "page.md")]
    assert main(["bench-backends", "--render-only", *given]) == 0
    assert "| llmpq | 1 |" in (tmp_path / "page.md").read_text()
