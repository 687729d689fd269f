"""Plan an experiment with one strategy."""

from llmpq.job import job
from llmpq.planning import write_plan

with job(snakemake):
    names, settings = snakemake.wildcards, snakemake.params.planner
    write_plan(
        snakemake.input[0],
        snakemake.output[0],
        names.strategy,
        solver=settings["solver"],
        time_limit=settings["time_limit_s"],
        gap=settings["gap"],
        seed=settings["seed"],
        experiment=names.experiment,
        keep_infeasible=True,
    )
