"""A plan served as one Slurm job: over both types of nodes, with the tokens of a local run, and what is left after every kind of fault."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nodes_cases
import pytest
import serve_cases
from serve_cases import Case
from slurm_site import Site


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_cases.tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of the same plan on this machine."""
    made = nodes_cases.case(tmp_path_factory.mktemp("local"), checkpoint)
    made.cluster = serve_cases.cluster(3)
    made.serve()
    return made.results()


def served(site: Site, made: Case) -> str:
    """Serve from the head node; returns what was said."""
    return site.run(*nodes_cases.arguments(made), timeout=300)


def test_one_heterogeneous_job_serves_the_tokens_of_a_local_run(site: Site, checkpoint: Path, local: list[dict], tmp_path: Path) -> None:
    made = nodes_cases.case(tmp_path, checkpoint)
    said = served(site, made)
    assert tokens(made) == [each["tokens"] for each in local]
    job = json.loads((tmp_path / "logs/nodes/job.json").read_text(encoding="utf-8"))["id"]
    shown = site.run("scontrol", "show", "job", "--oneliner", job).splitlines()
    assert [part in line for line, part in zip(shown, ("Partition=t4", "Partition=v100"), strict=True)] == [True, True]
    assert all("JobState=COMPLETED" in line and f"HetJobId={job}" in line for line in shown), said
    first = [(tmp_path / f"logs/stage-{rank}.log").read_text(encoding="utf-8").splitlines()[0] for rank in range(3)]
    assert first == ["task 0 on t4-0, devices [0]", "task 2 on v100-0, devices [0]", "task 1 on t4-0, devices [1]"]


def test_named_nodes(site: Site, checkpoint: Path, local: list[dict], tmp_path: Path) -> None:
    made = nodes_cases.case(tmp_path, checkpoint)
    made.cluster = nodes_cases.cluster("nodelist")
    made.cluster["slurm"] = {**nodes_cases.SITE, "partition": "every"}
    for member, node in zip(made.cluster["members"], ("t4-1", "v100-0", "t4-0"), strict=True):
        member["node"] = node
    for kind in made.cluster["types"].values():
        kind["slurm"] = {**kind["slurm"], "gres": "gpu:1"}
    served(site, made)
    assert tokens(made) == [each["tokens"] for each in local]
    first = [(tmp_path / f"logs/stage-{rank}.log").read_text(encoding="utf-8").splitlines()[0] for rank in range(3)]
    assert first == ["task 0 on t4-1, devices [0]", "task 1 on v100-0, devices [0]", "task 2 on t4-0, devices [0]"]


@pytest.fixture
def under_way(site: Site, checkpoint: Path, tmp_path: Path) -> Iterator[tuple[Case, "subprocess.Popen[str]"]]:
    """A slow run, at the moment when some of its requests have finished."""
    made = slow_case(tmp_path, checkpoint)
    with begun(site, made) as process:
        yield made, process


def slow_case(folder: Path, checkpoint: Path, **settings: Any) -> Case:
    """Three stages that take a while, each on a node of its own."""
    made = nodes_cases.case(folder, checkpoint, **settings)
    made.cluster = nodes_cases.cluster(slowdown=40.0)
    for member, node in zip(made.cluster["members"], ("t4-1", "v100-0", "t4-0"), strict=True):
        member["node"] = node
    return made


@contextmanager
def begun(site: Site, made: Case) -> Iterator["subprocess.Popen[str]"]:
    """A run of the case, from the moment on when three of its requests have finished."""
    log = (made.directory / "said.txt").open("w", encoding="utf-8")
    process = subprocess.Popen(
        site.command(nodes_cases.arguments(made)), stdout=log, stderr=log, text=True, start_new_session=True, preexec_fn=heed_interrupts
    )
    try:
        wait_until(lambda: len(made.journal()) >= 3 or process.poll() is not None, 180, lambda: output(made))
        assert process.poll() is None, output(made)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def output(made: Case) -> str:
    return (made.directory / "said.txt").read_text(encoding="utf-8")


def heed_interrupts() -> None:
    """Tests that were started with ``&`` ignore SIGINT, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def goes_on(site: Site, made: Case, local: list[dict]) -> None:
    """The same command serves what is missing, and only that, with the tokens of an undisturbed run."""
    kept = set(made.journal())
    assert kept >= nodes_cases.FINISH_EARLY
    for kind in made.cluster["types"].values():
        kind["slowdown"] = 1.0
    said = served(site, made)
    assert f"already finished: {len(kept)} of the requests" in said
    assert tokens(made) == [each["tokens"] for each in local]
    assert json.loads((made.directory / "serve.json").read_text(encoding="utf-8"))["resumed_requests"] == len(kept)


def ended(process: "subprocess.Popen[str]", made: Case, within: float = 120) -> str:
    """What a run said that has failed."""
    process.wait(timeout=within)
    assert process.returncode != 0
    return output(made)


def no_job(site: Site) -> bool:
    return not site.run("squeue", "-h").strip() and not nodes_cases.workers(site)


def test_scancel(site: Site, local: list[dict], under_way: tuple[Case, "subprocess.Popen[str]"]) -> None:
    made, process = under_way
    job = json.loads((made.directory / "logs/nodes/job.json").read_text(encoding="utf-8"))["id"]
    with pytest.raises(RuntimeError, match="disabled"):  # only the launcher starts it again, with what is missing
        site.run("scontrol", "requeue", job)
    site.run("scancel", job)
    assert f"Slurm job {job} (llmpq-serve-site-llmpq): CANCELLED" in ended(process, made)
    wait_until(lambda: no_job(site), 30, lambda: site.run("squeue"))
    goes_on(site, made, local)


def test_a_node_is_lost(site: Site, local: list[dict], under_way: tuple[Case, "subprocess.Popen[str]"]) -> None:
    made, process = under_way
    site.kill_node("t4-1")
    began = time.monotonic()
    said = ended(process, made)
    assert time.monotonic() - began < 90
    assert "stage 0 (d0, layers 0–1)" in said
    assert "6 requests are finished and kept in" in said
    site.start_node("t4-1")
    wait_until(lambda: site.run("sinfo", "-h", "-n", "t4-1", "-o", "%t").split()[0] == "idle", 60, lambda: site.run("sinfo", "-N"))
    wait_until(lambda: no_job(site), 30, lambda: site.run("squeue"))
    goes_on(site, made, local)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launcher_takes_its_job_with_it(
    site: Site, local: list[dict], under_way: tuple[Case, "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    made, process = under_way
    for child in nodes_cases.launchers(made):
        child.send_signal(number)
    assert "stopped; 3 of 6 requests are finished" in ended(process, made)
    assert no_job(site)
    goes_on(site, made, local)


def test_a_killed_launcher_leaves_a_job_that_the_next_run_ends(
    site: Site, local: list[dict], under_way: tuple[Case, "subprocess.Popen[str]"]
) -> None:
    made, process = under_way
    for child in nodes_cases.launchers(made):
        child.kill()
    process.wait(timeout=10)
    assert site.run("squeue", "-h").strip()
    goes_on(site, made, local)
    assert no_job(site)


def test_time_is_up(site: Site, checkpoint: Path, local: list[dict], tmp_path: Path) -> None:
    made = slow_case(tmp_path, checkpoint, timeout_s=600)
    for kind in made.cluster["types"].values():
        kind["slurm"]["runtime_min"] = 1
    with begun(site, made) as process:
        for worker in nodes_cases.workers(site):
            worker.suspend()
        assert re.search(r"Slurm job \d+ \(llmpq-serve-site-llmpq\): TIMEOUT", ended(process, made, within=240))
    goes_on(site, made, local)


def test_a_refused_job_says_what_slurm_said(site: Site, checkpoint: Path, tmp_path: Path) -> None:
    made = nodes_cases.case(tmp_path, checkpoint)
    made.cluster["types"]["v100"]["slurm"]["partition"] = "h100"
    with pytest.raises(RuntimeError, match=r"sbatch refused the job .*invalid partition specified: h100"):
        served(site, made)


def tokens(made: Case) -> list[list[int]]:
    return [each["tokens"] for each in made.results()]


def wait_until(condition: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
