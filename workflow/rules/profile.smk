"""Times of layers and links as they are measured, and what is fitted to them. Measuring rules take all cores: nothing runs beside them."""

PROFILE = "results/profiles/{profile}/{model}/{device}.json"


rule profile:
    input:
        checkpoint="resources/models/{model}/checkpoint",
    output:
        PROFILE,
    log:
        "results/logs/profile/{profile}/{model}/{device}.log",
    benchmark:
        "results/benchmarks/profile/{profile}/{model}/{device}.tsv"
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        profile=of_entry("profile", "micro_batches prompt_tokens contexts repeats warmup options"),
        device=of_entry("device", "kind source cores slowdown"),
        model=of_entry("model", "end_options kv_options"),
        code=code_digest("llmpq.profile.layers"),
    message:
        "Time one layer, embedding and head of {wildcards.model} on {wildcards.device}"
    script:
        "../scripts/profile.py"


rule links:
    output:
        "results/links/{profile}/{cluster}.json",
    log:
        "results/logs/links/{profile}/{cluster}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        profile=of_entry("profile", "link_bytes repeats warmup"),
        cluster=lambda wildcards: links_of(wildcards.cluster),
        code=code_digest("llmpq.profile.links", "llmpq.profile.link_worker"),
    message:
        "Time the links of {wildcards.cluster}"
    script:
        "../scripts/links.py"


rule fit:
    input:
        PROFILE,
    output:
        "results/cost/{profile}/{model}/{device}.json",
    log:
        "results/logs/fit/{profile}/{model}/{device}.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("llmpq.cost.latency"),
    message:
        "Fit the times of {wildcards.device}"
    script:
        "../scripts/fit.py"
