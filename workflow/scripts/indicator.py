"""Score the damage that every option does to every layer."""

from llmpq.indicator.table import write_indicator
from llmpq.job import job
from llmpq.quant.options import layer_options

with job(snakemake):
    given, names, params = snakemake.input, snakemake.wildcards, snakemake.params
    write_indicator(
        snakemake.output[0],
        checkpoint_dir=given.checkpoint,
        calibration_file=given.calibration,
        quantised_dirs=given.quantised,
        model=names.model,
        quantizer=names.quantizer,
        indicator={"name": names.indicator, **params.indicator},
        options=layer_options(params.quantizer["options"], params.model["kv_options"]),
        ends_dir=given.ends,
        end_options=params.model["end_options"],
    )
