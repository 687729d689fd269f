"""The batch script: what is asked for a plan's nodes, and which of Slurm's tasks is which stage."""

from pathlib import Path
from typing import Any

import pytest

from llmpq.slurm.script import batch_script, components, hosts_text, task_order, times

SITE = {"partition": "", "account": "", "qos": "", "interface": "", "options": []}


def kind(name: str, **asks: Any) -> dict[str, Any]:
    slurm = {"partition": name, "gres": f"gpu:{name}:1", "constraint": "", "mem_mb": 1000, "runtime_min": 30}
    return {"name": name, "cores": 2, "slurm": {**slurm, **asks}}


TYPES = {"t4": kind("t4"), "v100": kind("v100", constraint="nvlink", mem_mb=3000)}


def member(device: str, node: str = "") -> dict[str, Any]:
    return {"device": device, "node": node}


MEMBERS = [member("t4", "a"), member("v100"), member("t4", "b"), member("t4", "a")]


def test_nodes_that_ask_for_the_same_are_one_component() -> None:
    found = components([*MEMBERS, member("t4", "b")], TYPES, "hetjob")
    assert [(component.device["name"], component.tasks) for component in found] == [("t4", ((0, 3), (2, 4))), ("v100", ((1,),))]
    assert task_order(found) == [0, 3, 2, 4, 1]


def test_nodes_with_unlike_numbers_of_devices_are_components_of_their_own() -> None:
    found = components(MEMBERS, TYPES, "hetjob")
    assert [(component.device["name"], component.tasks) for component in found] == [("t4", ((0, 3),)), ("v100", ((1,),)), ("t4", ((2,),))]


def test_a_heterogeneous_job() -> None:
    found = components([*MEMBERS, member("t4", "b")], TYPES, "hetjob")
    site = {**SITE, "account": "lab", "interface": "ib0", "options": ["--exclusive"]}
    assert batch_script("llmpq-x", found, site, ["python", "-m", "m", "--task", "/a b"], Path("/f/job.log"), Path("/f/hosts")) == (
        """\
#!/bin/bash
#SBATCH --partition=t4
#SBATCH --account=lab
#SBATCH --gres=gpu:t4:2
#SBATCH --nodes=2
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=2
#SBATCH --mem=2000M
#SBATCH --time=30
#SBATCH --ntasks-per-node=2
#SBATCH --exclusive
#SBATCH --job-name=llmpq-x
#SBATCH --output=/f/job.log
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH hetjob
#SBATCH --partition=v100
#SBATCH --account=lab
#SBATCH --constraint=nvlink
#SBATCH --gres=gpu:v100:1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=3000M
#SBATCH --time=30
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
export GLOO_SOCKET_IFNAME=ib0
exec srun --kill-on-bad-exit=1 --het-group=0 --cpus-per-task=2 --distribution=block python -m m --task '/a b' """
        """: --kill-on-bad-exit=1 --het-group=1 --cpus-per-task=2 --distribution=block python -m m --task '/a b'
"""
    )


def test_named_nodes_are_one_component_whose_tasks_are_placed_one_by_one() -> None:
    members = [member("t4", "a"), member("v100", "c"), member("t4", "a")]
    found = components(members, TYPES, "nodelist")
    text = batch_script("llmpq-x", found, {**SITE, "partition": "every"}, ["true"], Path("/f/job.log"), Path("/f/hosts"))
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--partition=every", "--nodelist=a,c", "--nodes=2", "--ntasks=3", "--gres=gpu:t4:2"} <= set(options)
    assert "hetjob" not in options
    assert "export SLURM_HOSTFILE=/f/hosts" in text
    assert (hosts_text(found), task_order(found)) == ("a\na\nc\n", [0, 2, 1])
    assert text.splitlines()[-1] == "exec srun --kill-on-bad-exit=1 --cpus-per-task=2 --distribution=arbitrary true"


@pytest.mark.parametrize(("gres", "expected"), [("gpu:t4:1", "gpu:t4:3"), ("gpu:t4", "gpu:t4:3"), ("gpu", "gpu:3"), ("gpu:2", "gpu:6")])
def test_devices_for_several_processes(gres: str, expected: str) -> None:
    assert times(gres, 3) == expected
