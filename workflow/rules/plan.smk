"""One problem for each experiment (numbers only), one plan for each strategy; the plan explained, and the front of speed and quality."""


rule config_record:
    output:
        f"{EXPERIMENT}/config.yaml",
    log:
        "results/logs/config_record/{experiment}.log",
    conda:
        ENVIRONMENT
    params:
        experiment=lambda wildcards: experiment(wildcards),
    message:
        "Keep the configuration of {wildcards.experiment} beside its results"
    script:
        "../scripts/config_record.py"


rule problem:
    input:
        model=for_experiment("resources/models/{model}/model.json"),
        costs=cost_files,
        links=for_experiment("results/links/{profile}/{cluster}.json"),
        indicator=for_experiment("results/indicators/{model}/{quantizer}/{indicator}.json"),
    output:
        f"{EXPERIMENT}/problem.json",
    log:
        "results/logs/problem/{experiment}.log",
    wildcard_constraints:
        experiment=not_of(SIMULATED),
    conda:
        ENVIRONMENT
    params:
        model=of_experiment("model", "end_options kv_options"),
        cluster=lambda wildcards: without_slurm(experiment(wildcards)["cluster"]),
        workload=of_experiment("workload", "name requests slots prompt_tokens new_tokens"),
        quantizer=of_experiment("quantizer", "options"),
        planner=of_experiment("planner", "objective micro_batches"),
        serve=of_experiment("serve", "schedule"),
        backend=of_experiment("backend", "name plan_for"),
        code=code_digest("llmpq.cost.problem", "llmpq.export.choice"),
    message:
        "Write the planning problem of {wildcards.experiment}"
    script:
        "../scripts/problem.py"


rule data_sheet_problem:
    output:
        f"{EXPERIMENT}/problem.json",
    log:
        "results/logs/data_sheet_problem/{experiment}.log",
    wildcard_constraints:
        experiment=names_pattern(SIMULATED),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        model=of_experiment("model", "name layers shape end_options"),
        cluster=lambda wildcards: pick(experiment(wildcards)["cluster"], "members types ethernet_gbit_s"),
        workload=of_experiment("workload", "requests slots prompt_tokens new_tokens"),
        planner=of_experiment("planner", "objective micro_batches"),
        kernels=lambda wildcards: experiment(wildcards)["kernels"],
        code=code_digest("llmpq.cost.data_sheets"),
    message:
        "Write the planning problem of {wildcards.experiment} from data sheets"
    script:
        "../scripts/data_sheet_problem.py"


rule plan:
    input:
        for_experiment(f"{EXPERIMENT}/problem.json"),
    output:
        f"{RUN}/plan.json",
    log:
        "results/logs/plan/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/plan/{experiment}/{strategy}.tsv"
    conda:
        ENVIRONMENT
    params:
        planner=of_experiment("planner", "solver time_limit_s gap seed"),
        code=code_digest("llmpq.planning", "llmpq.plan.*"),
    message:
        "Plan {wildcards.experiment} with {wildcards.strategy}"
    script:
        "../scripts/plan.py"


rule explain:
    input:
        problem=f"{EXPERIMENT}/problem.json",
        plan=lambda wildcards: f"{EXPERIMENT}/{focus_strategy(experiment(wildcards)['strategies'])}/plan.json",
    output:
        f"{EXPERIMENT}/explain.json",
    log:
        "results/logs/explain/{experiment}.log",
    benchmark:
        "results/benchmarks/explain/{experiment}.tsv"
    conda:
        ENVIRONMENT
    params:
        planner=of_experiment("planner", "solver time_limit_s gap seed"),
        code=code_digest("llmpq.planning", "llmpq.plan.*"),
    message:
        "Explain the plan of {wildcards.experiment}"
    script:
        "../scripts/explain.py"


rule pareto:
    input:
        f"{EXPERIMENT}/problem.json",
    output:
        f"{EXPERIMENT}/pareto.json",
    log:
        "results/logs/pareto/{experiment}.log",
    benchmark:
        "results/benchmarks/pareto/{experiment}.tsv"
    conda:
        ENVIRONMENT
    params:
        planner=of_experiment("planner", "solver time_limit_s gap seed pareto"),
        code=code_digest("llmpq.planning", "llmpq.plan.*"),
    message:
        "Plan {wildcards.experiment} for a series of quality budgets"
    script:
        "../scripts/pareto.py"
