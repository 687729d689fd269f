"""Calibration statistics, the quantised layers (each model and quantizer once) and how much damage each option does."""

CALIBRATION = "results/calibration/{model}/{quantizer}.safetensors"


rule calibrate:
    message:
        "Calibrate {wildcards.model} for {wildcards.quantizer}"
    input:
        checkpoint="resources/models/{model}/checkpoint",
        text=lambda wildcards: f"resources/texts/{entry('quantizer', wildcards.quantizer)['calibration']['text']}.txt",
    output:
        CALIBRATION,
    params:
        quantizer=of_entry("quantizer", "calibration"),
        code=code_digest("llmpq.quant.calibrate", "llmpq.text"),
    threads: workflow.cores
    log:
        "results/logs/calibrate/{model}/{quantizer}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}/{quantizer}.tsv"
    conda:
        ENVIRONMENT
    script:
        "../scripts/calibrate.py"


rule quantise:
    message:
        "Quantise {wildcards.group} of {wildcards.model} with {wildcards.quantizer}"
    input:
        checkpoint="resources/models/{model}/checkpoint",
        calibration=CALIBRATION,
    output:
        directory("results/quantised/{model}/{quantizer}/{group}"),
    params:
        quantizer=of_entry("quantizer", "method options group_size symmetric damping act_order outlier_columns"),
        code=code_digest("llmpq.quant.quantise"),
    log:
        "results/logs/quantise/{model}/{quantizer}/{group}.log",
    benchmark:
        "results/benchmarks/quantise/{model}/{quantizer}/{group}.tsv"
    conda:
        ENVIRONMENT
    script:
        "../scripts/quantise.py"


rule indicator:
    message:
        "Score the options of every layer of {wildcards.model} by {wildcards.indicator}"
    input:
        checkpoint="resources/models/{model}/checkpoint",
        calibration=CALIBRATION,
        quantised=quantised_layers,
    output:
        "results/indicators/{model}/{quantizer}/{indicator}.json",
    params:
        indicator=of_entry("indicator"),
        quantizer=of_entry("quantizer", "options group_size symmetric"),
        code=code_digest("llmpq.indicator.*"),
    log:
        "results/logs/indicator/{model}/{quantizer}/{indicator}.log",
    benchmark:
        "results/benchmarks/indicator/{model}/{quantizer}/{indicator}.tsv"
    conda:
        ENVIRONMENT
    script:
        "../scripts/indicator.py"
