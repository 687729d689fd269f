"""The front of speed and quality of an experiment's problem."""

from llmpq.job import job
from llmpq.planning import write_front

with job(snakemake):
    settings = snakemake.params.planner
    write_front(
        snakemake.input[0],
        snakemake.output[0],
        points=settings["pareto"]["points"],
        memory_factors=settings["pareto"]["memory_factors"],
        solver=settings["solver"],
        time_limit=settings["time_limit_s"],
        gap=settings["gap"],
        seed=settings["seed"],
        experiment=snakemake.wildcards.experiment,
    )
