"""Serve a file of requests (docs/serving.md) by the plan of an experiment."""

from llmpq.job import job
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings
from llmpq.vllm_serve.run import serve_with_vllm
from llmpq.vllm_serve.settings import BACKEND as VLLM

with job(snakemake):
    given, params, out = snakemake.input, snakemake.params, snakemake.output.results
    groups = {"serve": params.serve, "workload": {**params.workload, "ignore_eos": False}, "backend": params.backend}
    settings = run_settings(groups, snakemake.wildcards.experiment)
    asked = (given.plan, given.problem, given.requests, params.cluster, given.checkpoint)
    if settings["backend"] == VLLM:
        serve_with_vllm(*asked, given.export, out, settings)
    else:
        serve(*asked, given.quantised, out, settings)
