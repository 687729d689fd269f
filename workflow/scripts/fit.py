"""Fit latency formulas to the times of one device."""

from llmpq import artifacts
from llmpq.cost.latency import fit_profile
from llmpq.job import job

with job(snakemake):
    profile = artifacts.read(snakemake.input[0], "profile")
    source = profile["provenance"]["source"]
    artifacts.write(snakemake.output[0], "cost", fit_profile(profile), source=source, inputs=[snakemake.input[0]])
