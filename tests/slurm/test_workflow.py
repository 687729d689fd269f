"""`snakemake --profile slurm all` from a fresh clone: where each job ran, what it saw, and that the results are those of a local run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import clone_cases
import pytest
from clone_cases import EXPERIMENT, RUN, STRATEGY, make_clone
from slurm_site import Site

from llmpq import artifacts

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def clone(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A clone in which the whole experiment has run on the site, and what was said."""
    folder = make_clone(tmp_path_factory.mktemp("clone") / "llmpq")
    code, said = clone_cases.run(site, folder)
    assert code == 0, said[-4000:]
    return folder, said


@pytest.fixture(scope="module")
def jobs(site: Site, clone: tuple[Path, str]) -> list[dict[str, str]]:
    """All jobs that Slurm remembers of this clone, as scontrol shows them."""
    lines = site.run("scontrol", "show", "job", "--oneliner").splitlines()
    found = [dict(re.findall(r"(\w[\w/:]*)=(\S*)", line)) for line in lines]
    return [job for job in found if job["WorkDir"] == str(clone[0])]


def of_rule(jobs: list[dict[str, str]], rule: str) -> list[dict[str, str]]:
    return [job for job in jobs if re.match(rf"rule_{rule}(_wildcards_|$)", job.get("Comment", ""))]


def test_devices_are_profiled_on_nodes_of_their_type(clone: tuple[Path, str], jobs: list[dict[str, str]]) -> None:
    found = {(job["Partition"], job["NodeList"].split("-")[0], job["TresPerNode"]) for job in of_rule(jobs, "profile")}
    assert found == {("t4", "t4", "gres:gpu:t4:1"), ("v100", "v100", "gres:gpu:v100:1")}
    # Two groups of layers, each a job of its own, and planning: on the nodes for everything else.
    assert [job["Partition"] for job in of_rule(jobs, "quantise")] == ["cpu"] * 2
    assert [job["NodeList"] for job in of_rule(jobs, "plan")] == ["cpu-0"]
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}


def test_serving_is_one_heterogeneous_job_with_processes_on_both_types(clone: tuple[Path, str], jobs: list[dict[str, str]]) -> None:
    served = [job for job in jobs if job["JobName"] == f"llmpq-serve-{EXPERIMENT}-{STRATEGY}"]
    assert {job["HetJobId"] for job in served} == {served[0]["JobId"]}
    assert {job["Partition"] for job in served} == {"t4", "v100"}
    stages = artifacts.read(clone[0] / RUN / "plan.json", "plan")["stages"]
    places = [place(clone[0], rank) for rank in range(len(stages))]
    assert [node.split("-")[0] for node, _ in places] == [stage["device"].split("-")[0] for stage in stages]
    assert len(set(places)) == len(stages), "two stages share a device"


def place(folder: Path, rank: int) -> tuple[str, str]:
    """The node and the devices that a stage saw."""
    first = (folder / RUN / f"logs/stage-{rank}.log").read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(r"task \d+ on ([\w-]+), devices \[(\d)\]", first)
    assert found, first
    return found[1], found[2]


def test_plan_and_tokens_are_those_of_a_local_run(clone: tuple[Path, str], tmp_path: Path) -> None:
    folder = clone[0]
    record = (folder / f"results/experiments/{EXPERIMENT}/config.yaml").read_text(encoding="utf-8")
    local = tmp_path / "local.yaml"
    local.write_text(record.replace("launch: hetjob", "launch: local"), encoding="utf-8")
    here = folder / f"results/experiments/{EXPERIMENT}"
    arguments = [sys.executable, "-m", "llmpq"]
    environment = clone_cases.environment(folder)
    planned = [*arguments, "plan", str(here / "problem.json"), "--out", str(tmp_path / "plan.json"), "--strategy", STRATEGY]
    subprocess.run(planned, cwd=folder, env=environment, check=True, capture_output=True)
    plans = [artifacts.read(path, "plan") for path in (tmp_path / "plan.json", folder / RUN / "plan.json")]
    assert plans[0]["stages"] == plans[1]["stages"]
    weights = folder / f"results/quantised/{EXPERIMENT}"
    served = [*arguments, "serve", str(folder / RUN / "plan.json"), "--requests", str(here / "workload.json"), "--config", str(local)]
    served += [
        "--checkpoint",
        str(folder / f"resources/models/{EXPERIMENT}/checkpoint"),
        "--quantised",
        str(weights),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(served, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tokens(tmp_path) == tokens(folder / RUN)


def tokens(folder: Path) -> list[list[int]]:
    return [json.loads(line)["tokens"] for line in (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()]


def test_mlflow_holds_everything_once(clone: tuple[Path, str]) -> None:
    runs = mlflow_runs(clone[0])
    names = [(run.data.tags["llmpq.strategy"], run.data.tags.get("llmpq.stage")) for run in runs]
    assert len(set(names)) == len(names)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (STRATEGY, None) in names
    assert {f"profile/site-{name}" for name in ("t4", "v100")} <= {stage for _, stage in names if stage}


def mlflow_runs(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.resolve()}/results/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(f"llmpq/{EXPERIMENT}")
    return list(client.search_runs([experiment.experiment_id], max_results=2000))


def test_a_second_run_submits_nothing(site: Site, clone: tuple[Path, str], jobs: list[dict[str, str]]) -> None:
    code, said = clone_cases.run(site, clone[0])
    assert code == 0, said
    assert "Nothing to be done" in said
    assert len(site.run("scontrol", "show", "job", "--oneliner").splitlines()) >= len(jobs)
