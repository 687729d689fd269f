"""Run a plan: a process for each stage."""

from pathlib import Path

from llmpq.job import job
from llmpq.serve.batch import serve

with job(snakemake):
    given, params = snakemake.input, snakemake.params
    serve(
        given.plan,
        given.problem,
        given.requests,
        params.cluster,
        given.checkpoint,
        Path(given.quantised[0]).parent,
        Path(snakemake.output.serve).parent,
        {
            **params.serve,
            **params.workload,
            **params.model,
            **{key: value for key, value in params.backend.items() if key != "name"},
            "backend": params.backend["name"],
            "experiment": snakemake.wildcards.experiment,
        },
    )
