"""Run a plan: a process for each stage. A strategy without a plan leaves files that say so."""

from pathlib import Path

from llmpq import artifacts, planless
from llmpq.job import job
from llmpq.serve.batch import serve

with job(snakemake):
    given, params, out = snakemake.input, snakemake.params, snakemake.output
    if planless.reason(artifacts.read(given.plan, "plan")) is not None:
        planless.write_unserved(given.plan, out.requests, out.serve, out.timeline)
    else:
        serve(
            given.plan,
            given.problem,
            given.requests,
            params.cluster,
            given.checkpoint,
            Path(given.quantised[0]).parent,
            Path(out.serve).parent,
            {
                **params.serve,
                **params.workload,
                **params.model,
                **{key: value for key, value in params.backend.items() if key != "name"},
                "backend": params.backend["name"],
                "experiment": snakemake.wildcards.experiment,
            },
        )
