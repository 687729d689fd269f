"""Keep what the 16-bit model thinks of the texts of an evaluation."""

from pathlib import Path

import torch

from llmpq.evaluate.reference import make_reference, write_reference
from llmpq.job import job
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import scored_windows

with job(snakemake):
    given, settings = snakemake.input, snakemake.params.evaluate
    tokenizer = load_tokenizer(given.checkpoint)
    cut = {"windows": settings["windows"], "tokens": settings["window_tokens"], "stride": settings["stride"]}
    texts = {Path(text).stem: torch.tensor(scored_windows(tokenizer, text, settings["region"], **cut)) for text in given.texts}
    made = make_reference(given.checkpoint, texts, stride=settings["stride"])
    write_reference(snakemake.output[0], made)
