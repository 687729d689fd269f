"""`snakemake --profile slurm all` from a fresh clone: where each job ran, what it saw, and that the results are those of a local run."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import clone_cases
import pytest
import yaml
from clone_cases import ABSENT, EXPERIMENT, STRATEGY, Finished
from slurm_site import Site

from llmpq import artifacts

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = Path(f"results/experiments/{EXPERIMENT}/{STRATEGY}")


def of_rule(finished: Finished, rule: str) -> list[dict[str, str]]:
    return [job for job in finished.jobs if re.match(rf"rule_{rule}(_wildcards_|$)", job.get("Comment", ""))]


def test_devices_are_profiled_on_nodes_of_their_type(finished: Finished) -> None:
    found = {(job["Partition"], job["NodeList"].split("-")[0], job["TresPerNode"]) for job in of_rule(finished, "profile")}
    assert found == {("t4", "t4", "gres:gpu:t4:1"), ("v100", "v100", "gres:gpu:v100:1")}


def test_all_else_runs_on_nodes_without_devices_a_job_for_each_group_of_layers(finished: Finished) -> None:
    everywhere = {rule: [job["NodeList"] for job in of_rule(finished, rule)] for rule in ("quantise", "indicator", "plan", "evaluate")}
    assert everywhere == {"quantise": ["cpu-0"] * 2, "indicator": ["cpu-0"], "plan": ["cpu-0"] * 2, "evaluate": ["cpu-0"]}
    assert {job["JobState"] for job in finished.jobs} == {"COMPLETED"}


def test_serving_is_one_heterogeneous_job_with_processes_on_both_types(finished: Finished) -> None:
    served = [job for job in finished.jobs if job["JobName"] == f"llmpq-serve-{EXPERIMENT}-{STRATEGY}"]
    assert {job["HetJobId"] for job in served} == {served[0]["JobId"]}
    assert {job["Partition"] for job in served} == {"t4", "v100"}
    stages = artifacts.read(finished.folder / RUN / "plan.json", "plan")["stages"]
    places = [place(finished.folder, rank) for rank in range(len(stages))]
    assert [node.split("-")[0] for node, _ in places] == [stage["device"].split("-")[0] for stage in stages]
    assert len(set(places)) == len(stages), "two stages share a device"


def place(folder: Path, rank: int) -> tuple[str, str]:
    """The node and the devices that a stage saw."""
    first = (folder / RUN / f"logs/stage-{rank}.log").read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(r"task \d+ on ([\w-]+), devices \[(\d)\]", first)
    assert found, first
    return found[1], found[2]


def test_plan_and_tokens_are_those_of_a_local_run(finished: Finished, tmp_path: Path) -> None:
    folder = finished.folder
    here = folder / f"results/experiments/{EXPERIMENT}"
    local = tmp_path / "local.yaml"
    local.write_text((here / "config.yaml").read_text(encoding="utf-8").replace("launch: hetjob", "launch: local"), encoding="utf-8")
    gap = str(yaml.safe_load(local.read_text(encoding="utf-8"))["planner"]["gap"])
    llmpq(folder, "plan", here / "problem.json", "--out", tmp_path / "plan.json", "--strategy", STRATEGY, "--gap", gap)
    assert artifacts.read(tmp_path / "plan.json", "plan")["stages"] == artifacts.read(folder / RUN / "plan.json", "plan")["stages"]
    weights = [folder / f"results/quantised/site/{name}" for name in ("tiny", "ends")]
    checkpoint, plan, requests = folder / "resources/models/site/checkpoint", folder / RUN / "plan.json", here / "workload.json"
    given = [plan, "--requests", requests, "--config", local, "--checkpoint", checkpoint, "--quantised", *weights]
    llmpq(folder, "serve", *given, "--out", tmp_path)
    assert tokens(tmp_path) == tokens(folder / RUN)


def llmpq(folder: Path, *arguments: str | Path) -> None:
    """Run the command of the clone on this machine, beside the site."""
    command = [sys.executable, "-m", "llmpq", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=clone_cases.environment(folder), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tokens(folder: Path) -> list[list[int]]:
    return [json.loads(line)["tokens"] for line in (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_experiment_on_absent_devices_is_planned_and_simulated_and_marked_so(finished: Finished) -> None:
    folder = finished.folder / f"results/experiments/{ABSENT}"
    assert artifacts.read(folder / "summary.json", "summary")["provenance"]["source"] == "simulated"
    assert "simulated" in (folder / "report.html").read_text(encoding="utf-8")
    assert {run.data.tags["llmpq.source"] for run in mlflow_runs(finished.folder, ABSENT)} == {"simulated"}
    assert [job["NodeList"] for job in of_rule(finished, "simulate")] == ["cpu-0"]
    assert f"llmpq-serve-{ABSENT}" not in " ".join(job["JobName"] for job in finished.jobs)


def test_mlflow_holds_everything_once(finished: Finished) -> None:
    runs = mlflow_runs(finished.folder, EXPERIMENT)
    names = [(run.data.tags["llmpq.strategy"], run.data.tags.get("llmpq.stage")) for run in runs]
    assert len(set(names)) == len(names)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (STRATEGY, None) in names
    assert {f"profile/site-{name}" for name in ("t4", "v100")} <= {stage for _, stage in names if stage}


def mlflow_runs(folder: Path, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.resolve()}/results/mlflow/mlflow.db")
    found = client.get_experiment_by_name(f"llmpq/{experiment}")
    return list(client.search_runs([found.experiment_id], max_results=2000))


def test_every_artifact_names_the_revision_and_the_list_of_versions(finished: Finished) -> None:
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=finished.folder, capture_output=True, text=True, check=True)
    documents = [
        json.loads(path.read_text(encoding="utf-8")) for path in finished.folder.glob("results/**/*.json") if ".jobs" not in path.parts
    ]
    found = {
        (each["provenance"]["git_revision"].split("-")[0], each["provenance"]["lock_sha256"]) for each in documents if "schema" in each
    }
    assert found == {(head.stdout.strip(), artifacts.lock_digest())}


def test_a_second_run_submits_nothing(site: Site, finished: Finished) -> None:
    before = len(clone_cases.jobs_of(site, finished.folder))
    code, said = clone_cases.run(site, finished.folder)
    assert code == 0, said
    assert "Nothing to be done" in said
    assert len(clone_cases.jobs_of(site, finished.folder)) == before


def test_the_experiment_is_packed_on_the_submitting_host(site: Site, finished: Finished) -> None:
    archive = f"results/archives/{EXPERIMENT}.tar.gz"
    code, said = clone_cases.run(site, finished.folder, archive)
    assert code == 0, said
    with tarfile.open(finished.folder / archive) as packed:
        names = {name.removeprefix(f"{EXPERIMENT}/") for name in packed.getnames()}
    own = f"results/experiments/{EXPERIMENT}"
    wanted = ("config.yaml", "report.html", "summary.csv", f"{STRATEGY}/plan.json", f"{STRATEGY}/requests.jsonl")
    assert {"manifest.json", *(f"{own}/{name}" for name in wanted)} <= names
    assert [name for name in names if name.startswith(f"{own}/figures/")]
    assert "results/logs/profile/tiny/site/site-t4.log" in names
