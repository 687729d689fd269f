"""Bring cost tables, links, indicator and memory together in one planning problem."""

from pathlib import Path

from llmpq.cost.problem import write_problem
from llmpq.job import job

with job(snakemake):
    given, settings = snakemake.input, snakemake.params
    write_problem(
        snakemake.output[0],
        {
            "model": given.model,
            "links": given.links,
            "indicator": given.indicator,
            "costs": {Path(path).stem: path for path in given.costs},
        },
        name=snakemake.wildcards.experiment,
        cluster=settings.cluster,
        workload=settings.workload,
        planner=settings.planner,
        options=settings.quantizer["options"],
        schedule=settings.serve["schedule"],
        end_options=settings.model["end_options"],
        kv_options=settings.model["kv_options"],
    )
