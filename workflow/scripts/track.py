"""Record an experiment's files in MLflow."""

from llmpq.job import job
from llmpq.track import read_record, track_experiment

with job(snakemake):
    track_experiment(read_record(snakemake.input.config), snakemake.output[0])
