"""Try the indicators of a study on random assignments, against uniform ones, and on pairs of layers; write the artifact and its page."""

from llmpq.job import job
from llmpq.validity.page import write_page
from llmpq.validity.write import write_validity

with job(snakemake):
    given, (artifact, page, table) = snakemake.input, snakemake.output
    document = write_validity(
        artifact,
        name=snakemake.wildcards.study,
        settings=snakemake.params.study,
        checkpoint_dir=given.checkpoint[0],
        quantised_dirs=given.quantised,
        indicator_files=given.indicators,
        stability_files=given.stability,
        text_files=given.texts,
    )
    write_page(page, table, document)
