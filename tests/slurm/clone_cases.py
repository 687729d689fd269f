"""A fresh clone of the repository, made ready for the test's site as its administrator would: by YAML files alone."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve_cases
import yaml
from process_cases import heed_interrupts, leave_nothing
from slurm_site import Site

ROOT = Path(__file__).parents[2]
EXPERIMENT, STRATEGY = "site", "llmpq"
ABSENT = "absent"  # an experiment on devices that the site lacks
LONG = "long"  # that on the site's nodes with so many requests that serving can be disturbed; no part of `all`
LONG_REQUESTS = 2000
# What the administrator of a site without accounts, whose queue is short, changes in the profile.
PROFILE = {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 3, "seconds-between-status-checks": 2}
# A device keeps 2 MiB for a model that takes 2.8 at least: no plan has one stage.
RESERVE_MIB, MEMORY_MIB = 32, 34
SENTENCE = "the river was cold and wide when morning came over old stone bridges where nobody had walked since winter began"


def device(name: str, slowdown: float) -> dict[str, Any]:
    """A device type whose jobs go to the partition of its name and get one of its GPUs."""
    asks = {"partition": name, "gres": f"gpu:{name}:1", "mem_mb": 1500, "runtime_min": 10}
    made = {"name": f"site-{name}", "kind": "cpu", "source": "emulated", "cores": 1, "slowdown": slowdown}
    return {**made, "memory_mib": MEMORY_MIB, "reserve_mib": RESERVE_MIB, "slurm": asks}


def make_clone(folder: Path) -> Path:
    """A clone whose experiments are ``site`` and ``long``, of a small model on a cluster over both types of the site, and ``absent``.

    What is not committed yet is in it too.
    """
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for name in filter(None, _git("ls-files", "-z", "--modified", "--others", "--exclude-standard").split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink()
    # Large enough that a layer's time is more than noise: what is fitted to the times has to hold.
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": serve_cases.BYTE_VOCAB}
    model = serve_cases.tiny_llama(folder / "tiny-llama", **sizes)
    serve_cases.byte_tokenizer(model)
    draw = random.Random(0)
    for text in ("wikipedia", "news"):
        path = folder / f"resources/texts/{text}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(" ".join(draw.choices(SENTENCE.split(), k=80)) + "." for _ in range(700)), encoding="utf-8")
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
    }
    long = {**experiment, "name": LONG, "workload": {"requests": LONG_REQUESTS}}
    absent = {
        "defaults": [{f"override /{group}": name} for group, name in (("cluster", "paper-3"), ("model", "opt-30b"), ("planner", "highs"))],
        "name": ABSENT,
        "strategies": [STRATEGY],
        "planner": {"explain": False, "pareto": {"points": 2}},
    }
    shutil.rmtree(folder / "config/experiment")
    for suite, content in (("lab", experiment), ("lab", absent), ("test", long)):
        _write(folder, f"experiment/{suite}/{content['name']}", content, "# @package _global_\n")
    profile = folder / "slurm/config.v9+.yaml"
    profile.write_text(yaml.safe_dump({**yaml.safe_load(profile.read_text(encoding="utf-8")), **PROFILE}), encoding="utf-8")
    return folder


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _write(folder: Path, name: str, content: dict[str, Any], head: str = "") -> None:
    path = folder / "config" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def command(*arguments: str, experiment: str = "", overrides: Sequence[str] = ()) -> list[str]:
    """``snakemake --profile slurm all``, or other targets; of one ``experiment`` alone, with ``overrides`` of it."""
    program = [str(Path(sys.executable).parent / "snakemake"), "--profile", "slurm", *(arguments or ("all",))]
    listed = ",".join(f'"{override}"' for override in overrides)
    return [*program, "--config", f"experiments={experiment}", f"overrides=[{listed}]"] if experiment else program


def environment(folder: Path) -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI",)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    return {**found, "PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}


def run(site: Site, folder: Path, *arguments: str, timeout: float = 1500, **choice: Any) -> tuple[int, str]:
    """Exit code and output of a run of the workflow on the site's head node; ``choice`` as for ``command``."""
    inside = site.command(command(*arguments, **choice), folder)
    done = subprocess.run(inside, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def started(site: Site, folder: Path, *arguments: str, **choice: Any) -> Iterator["subprocess.Popen[str]"]:
    """A run that goes on meanwhile; its output is in run.txt."""
    inside = site.command(command(*arguments, **choice), folder)
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


@dataclass(frozen=True)
class Finished:
    """A clone in which ``snakemake --profile slurm all`` has ended well, and its jobs as Slurm showed them then."""

    folder: Path
    jobs: list[dict[str, str]]


def finish(site: Site, folder: Path) -> Finished:
    """Run everything in a fresh clone at ``folder``."""
    code, said = run(site, make_clone(folder))
    assert code == 0, said[-4000:]
    return Finished(folder, jobs_of(site, folder))


def jobs_of(site: Site, folder: Path, rule: str = "", about: str = "") -> list[dict[str, str]]:
    """All jobs of a clone that Slurm remembers, as scontrol shows them; those of a ``rule`` alone, with ``about`` in their wildcards."""
    lines = site.run("scontrol", "show", "job", "--oneliner").splitlines()
    found = [dict(re.findall(r"(\w[\w/:]*)=(\S*)", line)) for line in lines if f"WorkDir={folder} " in line]
    return [job for job in found if not rule or re.match(rf"rule_{rule}(_wildcards_.*{about}|$)", job.get("Comment", ""))]
