"""Times of layers and links as they are measured, and what is fitted to them. Measuring rules take all cores: nothing runs beside them."""

PROFILE = "results/profiles/{profile}/{model}/{device}.json"


rule profile:
    message:
        "Time one layer, embedding and head of {wildcards.model} on {wildcards.device}"
    input:
        checkpoint="resources/models/{model}/checkpoint",
    output:
        PROFILE,
    params:
        profile=of_entry("profile", "micro_batches prompt_tokens contexts repeats warmup options"),
        device=of_entry("device", "kind source cores slowdown"),
        code=code_digest("llmpq.profile.layers"),
    threads: workflow.cores
    log:
        "results/logs/profile/{profile}/{model}/{device}.log",
    benchmark:
        "results/benchmarks/profile/{profile}/{model}/{device}.tsv"
    conda:
        ENVIRONMENT
    script:
        "../scripts/profile.py"


rule links:
    message:
        "Time the links of {wildcards.cluster}"
    output:
        "results/links/{profile}/{cluster}.json",
    params:
        profile=of_entry("profile", "link_bytes repeats warmup"),
        cluster=lambda wildcards: links_of(wildcards.cluster),
        code=code_digest("llmpq.profile.links", "llmpq.profile.link_worker"),
    threads: workflow.cores
    log:
        "results/logs/links/{profile}/{cluster}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/links.py"


rule fit:
    message:
        "Fit the times of {wildcards.device}"
    input:
        PROFILE,
    output:
        "results/cost/{profile}/{model}/{device}.json",
    params:
        profile=of_entry("profile", "holdout"),
        code=code_digest("llmpq.cost.latency"),
    log:
        "results/logs/fit/{profile}/{model}/{device}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/fit.py"
