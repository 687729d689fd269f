"""One problem for each experiment (numbers only), one plan for each strategy."""


rule config_record:
    message:
        "Keep the configuration of {wildcards.experiment} beside its results"
    output:
        f"{EXPERIMENT}/config.yaml",
    params:
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment],
    log:
        "results/logs/config_record/{experiment}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/config_record.py"


rule problem:
    message:
        "Write the planning problem of {wildcards.experiment}"
    input:
        model=for_experiment("resources/models/{model}/model.json"),
        costs=device_files("results/cost/{profile}/{model}/{device}.json"),
        profiles=device_files("results/profiles/{profile}/{model}/{device}.json"),
        links=for_experiment("results/links/{profile}/{cluster}.json"),
        indicator=for_experiment("results/indicators/{model}/{quantizer}/{indicator}.json"),
        workload=f"{EXPERIMENT}/workload.json",
    output:
        f"{EXPERIMENT}/problem.json",
    params:
        cluster=of_experiment("cluster"),
        workload=of_experiment("workload", "requests slots prompt_tokens new_tokens"),
        quantizer=of_experiment("quantizer", "options group_size symmetric outlier_columns"),
        planner=of_experiment("planner", "objective micro_batches"),
        serve=of_experiment("serve", "schedule"),
        code=code_digest("llmpq.cost.problem"),
    log:
        "results/logs/problem/{experiment}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/problem.py"


rule plan:
    message:
        "Plan {wildcards.experiment} with {wildcards.strategy}"
    input:
        f"{EXPERIMENT}/problem.json",
    output:
        f"{RUN}/plan.json",
    params:
        planner=of_experiment("planner", "solver time_limit_s gap seed"),
        code=code_digest("llmpq.plan.*"),
    log:
        "results/logs/plan/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/plan/{experiment}/{strategy}.tsv"
    conda:
        ENVIRONMENT
    script:
        "../scripts/plan.py"
