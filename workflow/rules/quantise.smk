"""Calibration statistics, the quantised layers (each model and quantizer once) and ends, and how much damage each option does."""

CALIBRATION = "results/calibration/{model}/{quantizer}.safetensors"


rule calibrate:
    input:
        checkpoint="resources/models/{model}/checkpoint",
        text=lambda wildcards: f"resources/texts/{entry('quantizer', wildcards.quantizer)['calibration']['text']}.txt",
    output:
        CALIBRATION,
    log:
        "results/logs/calibrate/{model}/{quantizer}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}/{quantizer}.tsv"
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        quantizer=of_entry("quantizer", "calibration"),
        code=code_digest("llmpq.quant.calibrate", "llmpq.text"),
    message:
        "Calibrate {wildcards.model} for {wildcards.quantizer}"
    script:
        "../scripts/calibrate.py"


rule quantise:
    input:
        checkpoint="resources/models/{model}/checkpoint",
        calibration=of_known_group(CALIBRATION),
    output:
        directory("results/quantised/{model}/{quantizer}/{group}"),
    log:
        "results/logs/quantise/{model}/{quantizer}/{group}.log",
    benchmark:
        "results/benchmarks/quantise/{model}/{quantizer}/{group}.tsv"
    conda:
        ENVIRONMENT
    params:
        quantizer=of_entry(
            "quantizer",
            "method options damping act_order static_groups",
        ),
        code=code_digest("llmpq.quant.quantise"),
    message:
        "Quantise {wildcards.group} of {wildcards.model} with {wildcards.quantizer}"
    script:
        "../scripts/quantise.py"


rule quantise_ends:
    input:
        checkpoint="resources/models/{model}/checkpoint",
    output:
        directory("results/quantised/{model}/ends"),
    log:
        "results/logs/quantise_ends/{model}.log",
    benchmark:
        "results/benchmarks/quantise_ends/{model}.tsv"
    conda:
        ENVIRONMENT
    params:
        options=lambda wildcards: quantised_options(entry("model", wildcards.model)["end_options"]),
        code=code_digest("llmpq.quant.ends"),
    message:
        "Quantise embedding and head of {wildcards.model}"
    script:
        "../scripts/quantise_ends.py"


rule indicator:
    input:
        checkpoint="resources/models/{model}/checkpoint",
        calibration=CALIBRATION,
        quantised=quantised_layers,
        ends=quantised_ends,
    output:
        "results/indicators/{model}/{quantizer}/{indicator}.json",
    log:
        "results/logs/indicator/{model}/{quantizer}/{indicator}.log",
    benchmark:
        "results/benchmarks/indicator/{model}/{quantizer}/{indicator}.tsv"
    conda:
        ENVIRONMENT
    params:
        indicator=of_entry("indicator"),
        quantizer=of_entry("quantizer", "options"),
        model=of_entry("model", "end_options kv_options"),
        code=code_digest("llmpq.indicator.*"),
    message:
        "Score the options of every layer of {wildcards.model} by {wildcards.indicator}"
    script:
        "../scripts/indicator.py"
