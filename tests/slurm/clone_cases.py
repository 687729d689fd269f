"""A fresh clone of the repository, made ready for the test's site as its administrator would: by YAML files alone."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serve_cases
import yaml
from process_cases import heed_interrupts, leave_nothing
from slurm_site import Site

ROOT = Path(__file__).parents[2]
EXPERIMENT, STRATEGY = "site", "llmpq"
RUN = Path(f"results/experiments/{EXPERIMENT}/{STRATEGY}")
WORDS = [
    "the",
    "river",
    "was",
    "cold",
    "and",
    "wide",
    "when",
    "morning",
    "came",
    "over",
    "old",
    "stone",
    "bridges",
    "where",
    "nobody",
    "had",
    "walked",
    "since",
    "winter",
    "began",
]


def device(name: str, slowdown: float) -> dict[str, Any]:
    """A device type whose jobs go to the partition of its name and get one of its GPUs."""
    asks = {"partition": name, "gres": f"gpu:{name}:1", "mem_mb": 1500, "runtime_min": 10}
    made = {"name": f"site-{name}", "kind": "cpu", "source": "emulated", "cores": 1, "slowdown": slowdown, "memory_mib": 64}
    return {**made, "reserve_mib": 32, "slurm": asks}


def make_clone(folder: Path, **changes: Any) -> Path:
    """The repository as it is here, with the site's devices, a cluster over both types, a small random model and short texts.

    ``changes`` are further groups of the experiment (serve={"timeout_s": 5}).
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # Large enough that a layer's time is more than noise: what is fitted to the times has to hold.
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": serve_cases.BYTE_VOCAB}
    model = serve_cases.tiny_llama(folder / "tiny-llama", **sizes)
    serve_cases.byte_tokenizer(model)
    draw = random.Random(0)
    for text in ("wikipedia", "news"):
        path = folder / f"resources/texts/{text}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=80)) + "." for _ in range(60)), encoding="utf-8")
    _write(folder, "model/site", {"name": "site", "source": "path", "path": str(model), "layers": serve_cases.LAYERS})
    for name, slowdown in (("t4", 2.0), ("v100", 1.0)):
        _write(folder, f"device/site-{name}", device(name, slowdown))
    members = [("t4-a", "site-t4", "first"), ("v100-a", "site-v100", "second"), ("t4-b", "site-t4", "first")]
    cluster = {
        "defaults": [{f"/device@types.site-{name}": f"site-{name}"} for name in ("t4", "v100")],
        "name": "site",
        "launch": "hetjob",
        "members": [{"name": name, "device": kind, "node": node} for name, kind, node in members],
    }
    _write(folder, "cluster/site", cluster)
    groups = {"cluster": "site", "model": "site", "workload": "tiny", "profile": "tiny", "quantizer": "tiny", "evaluate": "tiny"}
    experiment = {
        "defaults": [{f"override /{group}": name} for group, name in groups.items()],
        "name": EXPERIMENT,
        "strategies": [STRATEGY],
        "quantizer": {"layers_per_job": 3},
        "profile": {"repeats": 10},
        **changes,
    }
    _write(folder, f"experiment/{EXPERIMENT}", experiment, "# @package _global_\n# snakemake --profile slurm --config experiments=site\n")
    return folder


def _write(folder: Path, name: str, content: dict[str, Any], head: str = "") -> None:
    path = folder / "config" / f"{name}.yaml"
    path.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def command(*arguments: str, overrides: Sequence[str] = ()) -> list[str]:
    """``snakemake --profile slurm all`` for the site's experiment; the site keeps no accounts, and its queue is short."""
    program = [str(Path(sys.executable).parent / "snakemake"), "--profile", "slurm", "--workflow-profile", "none"]
    site = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "2"]
    listed = "[" + ",".join(f'"{override}"' for override in overrides) + "]"
    return [*program, "--latency-wait", "5", *site, *arguments, "--config", f"experiments={EXPERIMENT}", f"overrides={listed}"]


def environment(folder: Path) -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI",)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    return {**found, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}


def run(site: Site, folder: Path, *arguments: str, overrides: Sequence[str] = (), timeout: float = 1500) -> tuple[int, str]:
    """Exit code and output of a run of the workflow on the site's head node."""
    inside = site.command(command(*(arguments or ("all",)), overrides=overrides), folder)
    done = subprocess.run(inside, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def started(site: Site, folder: Path, *arguments: str, overrides: Sequence[str] = ()) -> Iterator["subprocess.Popen[str]"]:
    """A run that goes on meanwhile; its output is in run.txt."""
    inside = site.command(command(*(arguments or ("all",)), overrides=overrides), folder)
    with (folder / "run.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            inside,
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        try:
            yield process
        finally:
            leave_nothing(process.pid)
            process.wait()
