"""Write the resolved configuration of an experiment as YAML."""

import yaml

from llmpq.artifacts import write_text
from llmpq.job import job

with job(snakemake):
    text = yaml.safe_dump(snakemake.params.experiment, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_text(snakemake.output[0], text)
