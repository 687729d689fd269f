"""A folder in which everything is up to date, as far as Snakemake can tell."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dry_runs import ON_SLURM, NeedRun, dry_run, pretend

from llmpq.sources import PACKAGE, code_digest


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of src/llmpq whose digests the rules carry, so that nobody's editing meanwhile changes what these tests see."""
    package = tmp_path_factory.mktemp("sources") / "llmpq"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_digest.__kwdefaults__ is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(code_digest.__kwdefaults__, "package", package)
        yield package


@pytest.fixture(scope="session")
def up_to_date(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """A folder in which experiment duo is finished, as far as Snakemake can tell."""
    folder = tmp_path_factory.mktemp("up-to-date")
    pretend(folder, ["duo"])
    return folder


@pytest.fixture(scope="session")
def need_run(up_to_date: Path) -> NeedRun:
    """Names of the rules that would run again after a change."""

    def run(overrides: Sequence[str] = (), experiment: str = "duo") -> set[str]:
        return {rule for rule, _ in dry_run(up_to_date, [experiment], overrides)}

    return run


@pytest.fixture(scope="session")
def up_to_date_on_slurm(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """The same with duo's devices on the nodes of a Slurm cluster."""
    folder = tmp_path_factory.mktemp("up-to-date-on-slurm")
    pretend(folder, ["duo"], ON_SLURM)
    return folder


@pytest.fixture
def editable_copy(up_to_date: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder in which files may be changed or deleted (their times are kept)."""
    return Path(shutil.copytree(up_to_date, tmp_path / "copy", copy_function=shutil.copy2))
