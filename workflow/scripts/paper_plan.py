"""Plan a row of config/paper.yaml."""

from llmpq.job import job
from llmpq.planning import write_plan

with job(snakemake):
    settings = snakemake.params
    write_plan(
        snakemake.input[0],
        snakemake.output[0],
        "llmpq",
        solver=settings.solver,
        time_limit=settings.time_limit,
        gap=settings.gap,
        seed=settings.seed,
    )
