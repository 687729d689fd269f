"""Collect the statistics of every operator's inputs over some text."""

from llmpq.job import job
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.calibrate import calibrate
from llmpq.text import token_windows

with job(snakemake):
    given, settings = snakemake.input, snakemake.params.quantizer["calibration"]
    windows = token_windows(
        load_tokenizer(given.checkpoint),
        given.text,
        settings["region"],
        windows=settings["windows"],
        tokens=settings["tokens"],
        seed=settings["seed"],
    )
    calibrate(given.checkpoint, windows, snakemake.output[0], settings)
