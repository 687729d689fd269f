"""Run a plan: a process for each stage."""

from pathlib import Path

from llmpq.job import job
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings

with job(snakemake):
    given, params = snakemake.input, snakemake.params
    serve(
        given.plan,
        given.problem,
        given.requests,
        params.cluster,
        given.checkpoint,
        given.quantised,
        Path(snakemake.output.serve).parent,
        run_settings(
            {"serve": params.serve, "workload": params.workload, "model": params.model, "backend": params.backend},
            snakemake.wildcards.experiment,
        ),
    )
