"""Write the planning problem of an experiment whose devices are known from data sheets alone."""

from llmpq.cost.data_sheets import write_data_sheet_problem
from llmpq.job import job

with job(snakemake):
    settings = snakemake.params
    write_data_sheet_problem(
        snakemake.output[0],
        name=snakemake.wildcards.experiment,
        model=settings.model,
        cluster=settings.cluster,
        workload=settings.workload,
        planner=settings.planner,
        kernels=settings.kernels,
    )
