"""Serve a file of requests (docs/serving.md) by the plan of an experiment."""

from llmpq.job import job
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings

with job(snakemake):
    given, params = snakemake.input, snakemake.params
    groups = {"serve": params.serve, "workload": {**params.workload, "ignore_eos": False}, "backend": params.backend}
    settings = run_settings(groups, snakemake.wildcards.experiment)
    out = snakemake.output.results
    serve(given.plan, given.problem, given.requests, params.cluster, given.checkpoint, given.quantised, out, settings)
