"""Explain the plan of an experiment: what binds, what more of anything would buy, why baselines lose."""

from llmpq.job import job
from llmpq.planning import write_explanation

with job(snakemake):
    given, settings = snakemake.input, snakemake.params.planner
    write_explanation(
        given.problem,
        given.plan,
        snakemake.output[0],
        solver=settings["solver"],
        time_limit=settings["time_limit_s"],
        gap=settings["gap"],
        seed=settings["seed"],
        experiment=snakemake.wildcards.experiment,
    )
