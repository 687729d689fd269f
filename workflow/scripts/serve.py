"""Run a plan: a process for each stage. A strategy without a plan leaves files that say so."""

from pathlib import Path

from llmpq import artifacts, planless
from llmpq.job import job
from llmpq.serve.batch import serve
from llmpq.serve.job import run_settings
from llmpq.vllm_serve.run import serve_with_vllm
from llmpq.vllm_serve.settings import BACKEND as VLLM

with job(snakemake):
    given, params, out = snakemake.input, snakemake.params, snakemake.output
    if planless.reason(artifacts.read(given.plan, "plan")) is not None:
        planless.write_unserved(given.plan, out.requests, out.serve, out.timeline, out.simulated)
    else:
        groups = {"serve": params.serve, "workload": params.workload, "backend": params.backend}
        settings, folder = run_settings(groups, snakemake.wildcards.experiment), Path(out.serve).parent
        asked = (given.plan, given.problem, given.requests, params.cluster, given.checkpoint)
        if settings["backend"] == VLLM:
            serve_with_vllm(*asked, given.export, folder, settings)
        else:
            serve(*asked, given.quantised, folder, settings)
