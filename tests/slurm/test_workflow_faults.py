"""What goes wrong with a run of the workflow on the site: jobs cancelled or ended, Snakemake interrupted or killed; and the next run."""

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import clone_cases
import nodes_cases
import psutil
import pytest
from clone_cases import EXPERIMENT, RUN, make_clone, started
from process_cases import wait_for
from slurm_site import Site

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(1800)]
PROFILE = "results/profiles/tiny/site/site-t4.json"
SLOW = ["profile.repeats=60"]  # timing a device takes long enough to be disturbed


@pytest.fixture(scope="module")
def prepared(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the model prepared and nothing else."""
    folder = make_clone(tmp_path_factory.mktemp("faults") / "llmpq")
    code, said = clone_cases.run(site, folder, "resources/models/site/model.json")
    assert code == 0, said
    return folder


@pytest.fixture
def folder(prepared: Path) -> Iterator[Path]:
    """The clone, in which the device has not been timed."""
    yield prepared
    (prepared / PROFILE).unlink(missing_ok=True)


def jobs_of(site: Site, folder: Path, rule: str) -> list[dict[str, str]]:
    """All jobs of a rule that Slurm remembers of a clone."""
    lines = site.run("scontrol", "show", "job", "--oneliner").splitlines()
    found = [dict(re.findall(r"(\w[\w/:]*)=(\S*)", line)) for line in lines if f"WorkDir={folder} " in line]
    return [job for job in found if job.get("Comment", "").startswith(f"rule_{rule}_")]


def running(site: Site, folder: Path) -> str:
    """The id of the profiling job, once its script is at work."""
    for job in jobs_of(site, folder, "profile"):
        marker = folder / "results/.jobs/profile.tiny.site.site-t4.json"
        if job["JobState"] == "RUNNING" and marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["state"] == "running":
            return job["JobId"]
    return ""


def snakemakes(folder: Path) -> list[psutil.Process]:
    """The main process of the run in a clone (jobs on nodes run Snakemake too, in another mode)."""
    found = []
    for each in psutil.process_iter():
        try:
            command, where = each.cmdline(), each.cwd()
        except (psutil.Error, OSError):
            continue
        if where == str(folder) and any(part.endswith("/snakemake") for part in command[:2]) and "--profile" in command:
            found.append(each)
    return found


def test_a_cancelled_profiling_job_is_started_again(site: Site, folder: Path) -> None:
    before = len(jobs_of(site, folder, "profile"))
    with started(site, folder, PROFILE, overrides=SLOW) as process:
        job = wait_for(lambda: running(site, folder), 300, "the profiling job")
        site.run("scancel", job)
        assert process.wait(timeout=600) == 0, (folder / "run.txt").read_text(encoding="utf-8")
    states = Counter(job["JobState"] for job in jobs_of(site, folder, "profile")[before:])
    assert states == {"CANCELLED": 1, "COMPLETED": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_job_and_the_next_one_finishes(site: Site, folder: Path, number: signal.Signals) -> None:
    with started(site, folder, PROFILE, overrides=SLOW) as process:
        first = wait_for(lambda: running(site, folder), 300, "the profiling job")
        for each in snakemakes(folder):
            each.send_signal(number)
        assert process.wait(timeout=120) != 0
    if number == signal.SIGINT:
        wait_for(lambda: not site.run("squeue", "-h").strip(), 60, f"an empty queue, not {site.run('squeue')}")
    code, said = clone_cases.run(site, folder, PROFILE, overrides=SLOW)
    assert code == 0, said
    assert (folder / PROFILE).is_file()
    states = {job["JobId"]: job["JobState"] for job in jobs_of(site, folder, "profile")}
    assert states[first] == "CANCELLED"
    assert not site.run("squeue", "-h").strip()
    if number == signal.SIGKILL:
        assert f"Slurm jobs of an earlier run are cancelled: {first}" in said


def test_a_job_that_asked_for_too_little_gets_more(site: Site, folder: Path) -> None:
    before = len(jobs_of(site, folder, "profile"))
    code, said = clone_cases.run(site, folder, PROFILE, "--retries", "3", overrides=["cluster.types.site-t4.slurm.mem_mb=150"])
    jobs = jobs_of(site, folder, "profile")[before:]
    assert code == 0, said
    assert len(jobs) > 1
    assert [job["JobState"] for job in jobs][-1] == "COMPLETED"
    assert {job["JobState"] for job in jobs[:-1]} <= {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}
    asked = [(int(re.search(r"mem=(\d+)M", job["TRES"])[1]), job["TimeLimit"]) for job in jobs]  # type: ignore[index]
    assert asked == [(150 * attempt, f"00:{10 * attempt}:00") for attempt in range(1, len(jobs) + 1)]


def test_a_full_queue_is_waited_for(site: Site, folder: Path) -> None:
    blocker = site.run(
        "sbatch", "--parsable", "--partition=t4", "--nodes=2", "--exclusive", "--chdir=/", "--output=/dev/null", "--wrap=sleep 600"
    ).strip()
    with started(site, folder, PROFILE) as process:
        wait_for(lambda: [job for job in jobs_of(site, folder, "profile") if job["JobState"] == "PENDING"], 300, "a job that waits")
        site.run("scancel", blocker)
        assert process.wait(timeout=600) == 0, (folder / "run.txt").read_text(encoding="utf-8")


def test_a_cancelled_serving_job_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    folder = make_clone(tmp_path / "llmpq")
    slow = ["cluster.types.site-t4.slowdown=60", "workload.new_tokens=40"]
    with started(site, folder, "all", overrides=slow) as process:
        workers = wait_for(lambda: nodes_cases.workers(site) or process.poll() is not None, 1200, "serving")
        assert workers is not True, (folder / "run.txt").read_text(encoding="utf-8")[-3000:]
        job = wait_for(lambda: json.loads((folder / RUN / "logs/nodes/job.json").read_text(encoding="utf-8"))["id"], 30, "the job")
        site.run("scancel", job)
        assert process.wait(timeout=900) == 0, (folder / "run.txt").read_text(encoding="utf-8")[-3000:]
    served = [
        line for line in site.run("scontrol", "show", "job", "--oneliner").splitlines() if f"JobName=llmpq-serve-{EXPERIMENT}-" in line
    ]
    states = Counter(re.search(r"JobState=(\w+)", line)[1] for line in served if f"WorkDir={folder} " in line)  # type: ignore[index]
    assert states == {"CANCELLED": 2, "COMPLETED": 2}  # two components each
