"""Serve a file of requests (docs/serving.md) by the plan of an experiment."""

from llmpq.errors import ServeError
from llmpq.job import job
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings

with job(snakemake):
    given, params, name = snakemake.input, snakemake.params, snakemake.wildcards.experiment
    if params.backend["name"] != "native":
        raise ServeError(
            f"{given.requests}: experiment '{name}' has backend.name '{params.backend['name']}', which is given workloads alone; "
            "take an experiment with backend.name 'native', or the serve.sh of its export"
        )
    groups = {"serve": params.serve, "workload": {**params.workload, "ignore_eos": False}, "backend": params.backend}
    out = snakemake.output.results
    serve(given.plan, given.problem, given.requests, params.cluster, given.checkpoint, given.quantised, out, run_settings(groups, name))
