"""llmpq: plan, quantise, serve and measure a language model on a pipeline of unequal devices."""

__version__ = "0.1.0"
