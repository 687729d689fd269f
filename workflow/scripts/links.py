"""Time every link of a cluster between real processes."""

from llmpq.job import job
from llmpq.profile.links import profile_links

with job(snakemake):
    profile_links(snakemake.params.cluster, snakemake.params.profile, snakemake.output[0])
