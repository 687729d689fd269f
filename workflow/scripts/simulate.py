"""Simulate the plans of an experiment whose devices are not here."""

from llmpq.job import job
from llmpq.simulate.write import write_simulation

with job(snakemake):
    given, out = snakemake.input, snakemake.output
    write_simulation(given.problem, given.plans, out.simulation, out.timeline, snakemake.wildcards.experiment)
