"""Snakemake in this process: what would run in a folder, and a folder where everything is up to date."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, ExecutionSettings, OutputSettings, Quietness, ResourceSettings

ROOT = Path(__file__).parents[2]
DIRECTORIES = ("checkpoint", "ends", "figures", "vllm")
NeedRun = Callable[..., set[str]]


def dry_run(
    folder: Path, experiments: Sequence[str], overrides: Sequence[str] = (), *, force: bool = False, targets: Sequence[str] = ()
) -> list[tuple[str, list[str]]]:
    """(rule, outputs) of every job that would run in ``folder``, without the target rule."""
    config = {"overrides": list(overrides)} | ({"experiments": list(experiments)} if experiments else {})
    with contextlib.chdir(ROOT), SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(config=config),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        dag = workflow.dag(DAGSettings(forceall=force, targets=set(targets)))
        dag.execute_workflow(executor="dryrun", execution_settings=ExecutionSettings(lock=False))
        jobs = workflow._workflow.dag.needrun_jobs(exclude_finished=False)
        return [(job.rule.name, [str(path) for path in job.output]) for job in jobs if job.output]


def pretend(folder: Path, experiments: Sequence[str]) -> None:
    """Create every output of the experiments with a little content, and let Snakemake record them as made by its rules."""
    for _, outputs in dry_run(folder, experiments, force=True):
        for path in map(folder.joinpath, outputs):
            if path.name in DIRECTORIES or path.name.startswith("layers-"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("pretended\n", encoding="utf-8")
    with contextlib.chdir(ROOT), SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(config={"experiments": list(experiments)}),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        workflow.dag(DAGSettings(forceall=True)).execute_workflow(executor="touch", execution_settings=ExecutionSettings(lock=False))
