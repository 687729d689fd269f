"""Write a plan's checkpoint and settings for vLLM on the CPU. A strategy without a plan leaves an empty folder."""

from pathlib import Path

from llmpq import artifacts, planless
from llmpq.export.plan import export_plan
from llmpq.job import job

with job(snakemake):
    given, out = snakemake.input, Path(snakemake.output[0])
    if planless.reason(artifacts.read(given.plan, "plan")) is not None:
        out.mkdir()
    else:
        export_plan(given.plan, given.problem, given.checkpoint, given.quantised, out, platform="cpu")
