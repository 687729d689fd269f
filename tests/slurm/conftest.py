"""One Slurm site for all tests here, or a skip that says what this machine lacks."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_site
from clone_cases import Finished, finish
from slurm_site import Site

COMPLETING_S = 20.0  # for a job whose command has returned to be gone from the queue


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A controller and four nodes: cpu-0, t4-0 with two fake GPUs, t4-1 and v100-0 with one each."""
    why = slurm_site.missing() if "LLMPQ_TEST_SLURM" in os.environ else "a Slurm site needs minutes: run `make test-slurm`"
    if why:
        pytest.skip(why)
    with slurm_site.site(Path(tmp_path_factory.mktemp("slurm"))) as running:
        yield running


@pytest.fixture(scope="session")
def finished(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A fresh clone in which ``snakemake --profile slurm all`` has run on the site."""
    return finish(site, tmp_path_factory.mktemp("clone") / "llmpq")


@pytest.fixture(autouse=True)
def _nothing_left(site: Site) -> Iterator[None]:
    """No test leaves a job, a folder on the site's queue or a node that is down to the next one."""
    yield
    deadline = time.monotonic() + COMPLETING_S
    while (left := site.run("squeue", "-h", "-o", "%i %j %T %R").strip()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        site.run("scancel", *(line.split()[0].split("+")[0] for line in left.splitlines()))
        pytest.fail(f"jobs are left: {left}")
