"""Bring cost tables, links, indicator and memory together in one planning problem."""

from pathlib import Path

from llmpq.cost.problem import write_problem
from llmpq.export.choice import choice_for
from llmpq.job import job

with job(snakemake):
    given, settings = snakemake.input, snakemake.params
    offered = (settings.quantizer["options"], settings.model["end_options"], settings.model["kv_options"])
    choice = choice_for(settings.backend["plan_for"], *offered)
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
        options=choice.options,
        schedule=settings.serve["schedule"],
        end_options=choice.end_options,
        kv_options=choice.kv_options,
        notes=choice.notes,
        backend=settings.backend["name"],
    )
