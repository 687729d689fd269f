"""The package auto-gptq as a quantiser: on the same Hessians as ours, for the same layer files, in a process of its own.

The package ended with transformers 4, so it lives in an environment of its own (``make auto-gptq``) and is never imported here. One
process serves all operators of a group of layers; tensors pass through files in a temporary folder.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant import auto_gptq_worker
from llmpq.quant.gptq import Quantised
from llmpq.quant.grid import Grid

ENVIRONMENT = Path(".envs/auto-gptq")
"""Where ``make auto-gptq`` puts the environment, relative to the folder in which the workflow runs."""


class AutoGptq:
    """The package at work: started at the first operator, ended by ``with``. ``environment``: its virtual environment."""

    def __init__(self, environment: str | Path = ENVIRONMENT) -> None:
        self.environment = Path(environment)
        self._process: subprocess.Popen[str] | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None

    @property
    def version(self) -> str:
        """The installed package's version; LlmpqError saying how to build the environment where it is not there."""
        found = sorted(self.environment.glob("lib/python3*/site-packages/auto_gptq-*.dist-info"))
        if not found or not self._interpreter.exists():
            raise LlmpqError(
                f"quantizer.method auto-gptq: its environment {self.environment} is not there or not complete; "
                "build it with `make auto-gptq`"
            )
        return found[0].name.removeprefix("auto_gptq-").removesuffix(".dist-info")

    def quantise(
        self, weight: Tensor, hessian: Tensor, grid: Grid, *, damping: float, act_order: bool = False, static_groups: bool = False
    ) -> Quantised:
        """``weight`` fp32 [out, in] on the package's grid of these bits and groups, its scales and offsets rounded to bf16 beforehand."""
        made = self._ask(weight, hessian, grid, damping, act_order, static_groups, served=True)
        none = weight.new_empty(0).long()
        return Quantised(made["codes"], made["scales"], none, weight[:, none], made.get("offsets"))

    def own_weight(
        self, weight: Tensor, hessian: Tensor, grid: Grid, *, damping: float, act_order: bool = False, static_groups: bool = False
    ) -> Tensor:
        """The fp32 weight [out, in] that the package itself would serve: its own ``Quantizer``, scales in fp32."""
        return self._ask(weight, hessian, grid, damping, act_order, static_groups, served=False)["weight"]

    def __enter__(self) -> "AutoGptq":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._files is not None:
            self._files.cleanup()
        self._process = self._files = None

    @property
    def _interpreter(self) -> Path:
        return self.environment / "bin" / "python"

    def _ask(
        self, weight: Tensor, hessian: Tensor, grid: Grid, damping: float, act_order: bool, static_groups: bool, *, served: bool
    ) -> dict[str, Tensor]:
        folder = self._started()
        request: dict[str, Any] = {
            "given": str(folder / "given.safetensors"),
            "made": str(folder / "made.safetensors"),
            "bits": grid.bits,
            "group_size": grid.group_size,
            "symmetric": grid.symmetric,
            "damping": damping,
            "act_order": act_order,
            "static_groups": static_groups,
            "served": served,
        }
        save_file({"weight": weight.contiguous(), "hessian": hessian.contiguous()}, request["given"])
        answer = self._exchange(json.dumps(request))
        if "error" in answer:
            raise LlmpqError(f"auto-gptq failed: {answer['error']}")
        return load_file(request["made"])

    def _started(self) -> Path:
        """The folder for tensors, once the process says that it has the package."""
        if self._files is None:
            self.version  # noqa: B018  refuses a missing environment
            self._files = tempfile.TemporaryDirectory(prefix="llmpq-auto-gptq-")
            # isolated: nothing of this process's packages, nor the program's own folder, is in its way
            command = [str(self._interpreter.absolute()), "-I", str(Path(auto_gptq_worker.__file__).absolute())]
            with (Path(self._files.name) / "stderr").open("w") as errors:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            self._exchange(None)
        return Path(self._files.name)

    def _exchange(self, question: str | None) -> dict[str, Any]:
        """Send a line, if any, and read one; LlmpqError with the end of what the process said where it is gone."""
        assert self._files is not None
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if question is not None:
                print(question, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = (Path(self._files.name) / "stderr").read_text(encoding="utf-8", errors="replace").strip()
            print(said, file=sys.stderr)
            last = said.splitlines()[-1:] or ["it said nothing"]
            raise LlmpqError(
                f"auto-gptq's process ended ({last[0]}); if its environment {self.environment} is damaged, delete it and `make auto-gptq`"
            )
        return dict(json.loads(line))
