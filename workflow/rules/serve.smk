"""Run a plan: a process for each stage, then perplexity of the very weights that were served."""


rule serve:
    input:
        plan=f"{RUN}/plan.json",
        problem=f"{EXPERIMENT}/problem.json",
        requests=f"{EXPERIMENT}/workload.json",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
    output:
        requests=f"{RUN}/requests.jsonl",
        serve=f"{RUN}/serve.json",
        timeline=f"{RUN}/timeline.json",
    log:
        "results/logs/serve/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/serve/{experiment}/{strategy}.tsv"
    conda:
        ENVIRONMENT
    threads: workflow.cores
    params:
        serve=of_experiment("serve"),
        backend=of_experiment("backend", "name margins port"),
        cluster=of_experiment("cluster"),
        workload=of_experiment("workload", "slots ignore_eos"),
        code=code_digest("llmpq.serve.*"),
    message:
        "Serve {wildcards.experiment} as {wildcards.strategy} planned it"
    script:
        "../scripts/serve.py"


rule evaluate:
    input:
        plan=f"{RUN}/plan.json",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
        texts=lambda wildcards: expand(
            "resources/texts/{text}.txt",
            text=experiment(wildcards)["evaluate"]["texts"],
        ),
    output:
        f"{RUN}/quality.json",
    log:
        "results/logs/evaluate/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/evaluate/{experiment}/{strategy}.tsv"
    conda:
        ENVIRONMENT
    params:
        evaluate=of_experiment("evaluate"),
        code=code_digest("llmpq.evaluate.*"),
    message:
        "Perplexity of {wildcards.experiment} as {wildcards.strategy} planned it"
    script:
        "../scripts/evaluate.py"
