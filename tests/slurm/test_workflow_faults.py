"""What goes wrong with a run of the workflow on the site: jobs cancelled or ended, Snakemake interrupted or killed; and the next run."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import clone_cases
import nodes_cases
import psutil
import pytest
from clone_cases import EXPERIMENT, LONG, LONG_REQUESTS, STRATEGY, Finished, jobs_of, make_clone, started
from process_cases import wait_for
from slurm_site import Site

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.timeout(1800)]
T4, V100 = (f"results/profiles/tiny/site/site-{name}.json" for name in ("t4", "v100"))
SLOW = {"experiment": EXPERIMENT, "overrides": ["profile.repeats=25"]}  # timing a device takes long enough to be disturbed
RUN = Path(f"results/experiments/{LONG}/{STRATEGY}")


@pytest.fixture(scope="module")
def prepared(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the model prepared and nothing else."""
    folder = make_clone(tmp_path_factory.mktemp("faults") / "llmpq")
    code, said = clone_cases.run(site, folder, "resources/models/site/model.json")
    assert code == 0, said
    return folder


@pytest.fixture
def folder(prepared: Path) -> Iterator[Path]:
    """The clone, in which no device has been timed."""
    yield prepared
    for path in (T4, V100):
        (prepared / path).unlink(missing_ok=True)


def timing(site: Site, folder: Path, device: str = "t4") -> str:
    """The id of a device's profiling job, once its script is at work."""
    for job in jobs_of(site, folder, "profile", f"site-{device}"):
        marker = folder / f"results/.jobs/profile.tiny.site.site-{device}.json"
        if job["JobState"] == "RUNNING" and marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["state"] == "running":
            return job["JobId"]
    return ""


def snakemakes(folder: Path) -> list[psutil.Process]:
    """The main process of the run in a clone (jobs on nodes run Snakemake too, in another mode)."""
    return [each for each in psutil.process_iter() if _is_snakemake(each, folder)]


def _is_snakemake(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        command = process.cmdline()
        return process.cwd() == str(folder) and any(part.endswith("/snakemake") for part in command[:2]) and "--profile" in command
    return False


def end(process: "subprocess.Popen[str]", folder: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches Snakemake and all that it runs on its host, SIGKILL itself alone; what it ran is left to itself."""
    for each in snakemakes(folder):
        if number == signal.SIGINT:
            os.killpg(os.getpgid(each.pid), number)
        else:
            each.kill()
    wait_for(lambda: not snakemakes(folder), 120, "the end of Snakemake")
    process.wait(timeout=60)


def said_in(folder: Path) -> str:
    return (folder / "run.txt").read_text(encoding="utf-8")[-4000:]


def test_a_full_queue_is_waited_for_and_a_cancelled_job_started_again(site: Site, folder: Path) -> None:
    before = len(jobs_of(site, folder, "profile"))
    everything = ["--partition=t4", "--nodes=2", "--exclusive", "--chdir=/", "--output=/dev/null", "--wrap=sleep 3600"]
    blocker = site.run("sbatch", "--parsable", *everything).strip()
    with started(site, folder, T4, **SLOW) as process:
        wait_for(lambda: [job for job in jobs_of(site, folder, "profile") if job["JobState"] == "PENDING"], 300, "a job that waits")
        site.run("scancel", blocker)
        job = wait_for(lambda: timing(site, folder), 300, "the profiling job")
        site.run("scancel", job)
        assert process.wait(timeout=600) == 0, said_in(folder)
    states = Counter(job["JobState"] for job in jobs_of(site, folder, "profile")[before:])
    assert states == {"CANCELLED": 1, "COMPLETED": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_job_and_the_next_one_finishes(site: Site, folder: Path, number: signal.Signals) -> None:
    with started(site, folder, T4, **SLOW) as process:
        first = wait_for(lambda: timing(site, folder), 300, "the profiling job")
        end(process, folder, number)
    if number == signal.SIGINT:
        wait_for(lambda: not site.run("squeue", "-h").strip(), 60, "an empty queue")
    code, said = clone_cases.run(site, folder, T4, **SLOW)
    assert code == 0, said
    assert (folder / T4).is_file()
    states = {job["JobId"]: job["JobState"] for job in jobs_of(site, folder, "profile")}
    assert states[first] == "CANCELLED"
    assert not site.run("squeue", "-h").strip()
    if number == signal.SIGKILL:
        assert f"Slurm jobs of an earlier run are cancelled: {first}" in said


def test_a_job_that_lacked_memory_or_time_gets_more(site: Site, folder: Path) -> None:
    """Both at once: the T4's job takes more memory than it asked for, that of the V100 hangs for longer than its minute."""
    before = {job["JobId"] for job in jobs_of(site, folder, "profile")}
    too_little = ["cluster.types.site-t4.slurm.mem_mb=400", "cluster.types.site-v100.slurm.runtime_min=1"]
    with started(site, folder, T4, V100, "--retries", "4", experiment=EXPERIMENT, overrides=too_little) as process:
        hung = wait_for(lambda: timing(site, folder, "v100"), 300, "the V100's job")
        for each in script_of(hung):
            each.suspend()
        assert process.wait(timeout=900) == 0, said_in(folder)
    asked = {}
    for device in ("t4", "v100"):
        jobs = [job for job in jobs_of(site, folder, "profile", f"site-{device}") if job["JobId"] not in before]
        asked[device] = [(int(re.search(r"mem=(\d+)M", job["TRES"])[1]), job["TimeLimit"]) for job in jobs]  # type: ignore[index]
        assert jobs[-1]["JobState"] == "COMPLETED"
        lacked = {"t4": {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}, "v100": {"TIMEOUT"}}[device]
        assert {job["JobState"] for job in jobs[:-1]} <= lacked
    assert len(asked["t4"]) > 1
    assert asked["t4"] == [(400 * attempt, f"00:{10 * attempt}:00") for attempt in range(1, len(asked["t4"]) + 1)]
    assert asked["v100"] == [(1500, "00:01:00"), (3000, "00:02:00")]


def script_of(job: str) -> list[psutil.Process]:
    """The processes of a Slurm job that run a rule's script."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any("/.snakemake/scripts/" in part for part in each.cmdline()) and each.environ().get("SLURM_JOB_ID") == job:
                found.append(each)
    assert found, f"job {job} runs no script"
    return found


def test_serving_goes_on_after_an_interrupt_a_kill_and_a_cancelled_job(site: Site, finished: Finished) -> None:
    folder = finished.folder
    for number in (signal.SIGINT, signal.SIGKILL):
        with started(site, folder, experiment=LONG) as process:
            serves_more(folder)
            end(process, folder, number)
        wait_for(lambda: not site.run("squeue", "-h").strip() and not nodes_cases.workers(site), 120, "an empty queue")
    with started(site, folder, experiment=LONG) as process:
        kept = serves_more(folder)
        site.run("scancel", json.loads((folder / RUN / "logs/nodes/job.json").read_text(encoding="utf-8"))["id"])
        assert process.wait(timeout=900) == 0, said_in(folder)
    lines = [json.loads(line) for line in (folder / RUN / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == LONG_REQUESTS
    report = json.loads((folder / RUN / "serve.json").read_text(encoding="utf-8"))
    assert kept <= report["resumed_requests"] == LONG_REQUESTS - report["served_requests"]
    done_once(site, finished)


def serves_more(folder: Path) -> int:
    """Wait until a run that has just begun has finished some requests; how many are kept now."""
    before = requests_kept(folder)
    wait_for(lambda: requests_kept(folder) > before + 20, 600, f"requests\n{said_in(folder)}")
    return requests_kept(folder)


def requests_kept(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") - 1 for path in (folder / RUN / "journal").glob("journal-*.jsonl"))


def done_once(site: Site, finished: Finished) -> None:
    """Serving has been four Slurm jobs, planning one, and nothing that the experiment shares with another has been made again."""
    jobs = jobs_of(site, finished.folder)[len(finished.jobs) :]
    served = [job for job in jobs if job["JobName"] == f"llmpq-serve-{LONG}-{STRATEGY}" and job["JobId"] == job.get("HetJobId")]
    assert [job["JobState"] for job in served] == ["CANCELLED", "CANCELLED", "CANCELLED", "COMPLETED"]
    rules = Counter(re.split(r"^rule_|_wildcards_", job["Comment"])[1] for job in jobs if job.get("Comment", "").startswith("rule_"))
    assert rules["plan"] == 1
    assert set(rules) == {"plan", "pareto", "explain", "evaluate"}
