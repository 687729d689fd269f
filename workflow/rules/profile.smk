"""Times of layers and links as they are measured, and what is fitted to them. Measuring rules take all cores: nothing runs beside them."""

PROFILE = "results/profiles/{profile}/{model}/{device}.json"
VLLM_PROFILE = "results/vllm/profiles/{profile}/{model}/{device}.json"


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
    threads: all_cores
    resources:
        slurm_partition=lambda wildcards: slurm_of(wildcards)["partition"],
        gres=lambda wildcards: slurm_of(wildcards)["gres"],
        slurm_extra=lambda wildcards: f"--constraint={slurm_of(wildcards)['constraint']}" if slurm_of(wildcards)["constraint"] else "",
        mem_mb=lambda wildcards, attempt: slurm_of(wildcards)["mem_mb"] * attempt,
        runtime=lambda wildcards, attempt: slurm_of(wildcards)["runtime_min"] * attempt,
    params:
        profile=of_entry("profile", "micro_batches prompt_tokens contexts repeats warmup options"),
        device=of_entry("device", "kind source cores slowdown"),
        model=of_entry("model", "end_options kv_options"),
        code=code_digest("llmpq.profile.layers"),
    message:
        "Time one layer, embedding and head of {wildcards.model} on {wildcards.device}"
    script:
        "../scripts/profile.py"


rule profile_vllm:
    input:
        checkpoint="resources/models/{model}/checkpoint",
    output:
        VLLM_PROFILE,
    log:
        "results/logs/profile_vllm/{profile}/{model}/{device}.log",
    benchmark:
        "results/benchmarks/profile_vllm/{profile}/{model}/{device}.tsv"
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        profile=of_entry("profile", "micro_batches prompt_tokens contexts repeats warmup options"),
        device=of_entry("device", "kind source cores slowdown"),
        model=of_entry("model", "end_options kv_options"),
        compiled=lambda wildcards: compiled_by_vllm(),
        code=code_digest("llmpq.vllm_serve.profile", "llmpq.vllm_serve.recorder", "llmpq.export.choice"),
    message:
        "Time one layer, embedding and head of {wildcards.model} on {wildcards.device} through vLLM"
    script:
        "../scripts/profile_vllm.py"


rule links:
    output:
        "results/links/{profile}/{cluster}.json",
    log:
        "results/logs/links/{profile}/{cluster}.log",
    wildcard_constraints:
        cluster=rf"(?!(?:{names_pattern(CLUSTERS_ON_NODES)})\.json$)[\w.-]+",
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        profile=of_entry("profile", "link_bytes repeats warmup"),
        decisive=lambda wildcards: links_of(wildcards.cluster),
        cluster=whole_cluster,
        code=code_digest("llmpq.profile.links", "llmpq.profile.link_worker"),
    message:
        "Time the links of {wildcards.cluster}"
    script:
        "../scripts/links.py"


use rule links as links_on_nodes with:
    wildcard_constraints:
        cluster=names_pattern(CLUSTERS_ON_NODES),
    threads: 1
    message:
        "Time the links between the nodes of {wildcards.cluster}"


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
        backend="native",
        code=code_digest("llmpq.cost.latency"),
    message:
        "Fit the times of {wildcards.device}"
    script:
        "../scripts/fit.py"


use rule fit as fit_vllm with:
    input:
        VLLM_PROFILE,
    output:
        "results/vllm/cost/{profile}/{model}/{device}.json",
    log:
        "results/logs/fit_vllm/{profile}/{model}/{device}.log",
    params:
        backend="vllm",
        code=code_digest("llmpq.cost.latency"),
    message:
        "Fit the times of {wildcards.device} through vLLM"
