"""Run a plan, or simulate it where its devices are not here: a process for each stage, then the quality of the very weights that were served, beside the 16-bit model."""


rule export:
    input:
        plan=f"{RUN}/plan.json",
        problem=f"{EXPERIMENT}/problem.json",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
    output:
        directory(f"{RUN}/vllm"),
    log:
        "results/logs/export/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/export/{experiment}/{strategy}.tsv"
    conda:
        ENVIRONMENT
    params:
        code=code_digest("llmpq.export.*"),
    message:
        "Write {wildcards.experiment} as {wildcards.strategy} planned it for vLLM"
    script:
        "../scripts/export.py"


rule serve:
    input:
        plan=f"{RUN}/plan.json",
        problem=f"{EXPERIMENT}/problem.json",
        requests=f"{EXPERIMENT}/workload.json",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
        export=if_vllm(f"{RUN}/vllm"),
    output:
        requests=f"{RUN}/requests.jsonl",
        serve=f"{RUN}/serve.json",
        timeline=f"{RUN}/timeline.json",
        simulated=f"{RUN}/simulated.json",
    log:
        "results/logs/serve/{experiment}/{strategy}.log",
    benchmark:
        "results/benchmarks/serve/{experiment}/{strategy}.tsv"
    wildcard_constraints:
        experiment=not_of(ON_NODES + SIMULATED),
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        serve=of_experiment("serve"),
        backend=served_by,
        decisive=lambda wildcards: without_slurm(experiment(wildcards)["cluster"]),
        cluster=whole_cluster,
        workload=of_experiment("workload", "slots ignore_eos"),
        code=serving_code,
    message:
        "Serve {wildcards.experiment} as {wildcards.strategy} planned it"
    script:
        "../scripts/serve.py"


use rule serve as serve_on_nodes with:
    wildcard_constraints:
        experiment=names_pattern(ON_NODES),
    threads: 1
    message:
        "Serve {wildcards.experiment} as {wildcards.strategy} planned it, on the nodes of its cluster"


rule serve_file:
    input:
        plan=f"{RUN}/plan.json",
        problem=f"{EXPERIMENT}/problem.json",
        requests="requests/{file}.jsonl",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
        export=if_vllm(f"{RUN}/vllm"),
    output:
        results=f"{RUN}/served/{{file}}.jsonl",
        serve=f"{RUN}/served/{{file}}.serve.json",
        timeline=f"{RUN}/served/{{file}}.timeline.json",
        simulated=f"{RUN}/served/{{file}}.simulated.json",
    log:
        "results/logs/serve_file/{experiment}/{strategy}/{file}.log",
    wildcard_constraints:
        experiment=not_of(ON_NODES + SIMULATED),
        file=r"[\w.-]+",
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        serve=of_experiment("serve"),
        backend=served_by,
        decisive=lambda wildcards: without_slurm(experiment(wildcards)["cluster"]),
        cluster=whole_cluster,
        workload=of_experiment("workload", "slots"),
        code=serving_code,
    message:
        "Serve requests/{wildcards.file}.jsonl as {wildcards.strategy} planned {wildcards.experiment}"
    script:
        "../scripts/serve_file.py"


rule simulate:
    input:
        plans=strategy_files("plan.json"),
        problem=f"{EXPERIMENT}/problem.json",
    output:
        simulation=f"{EXPERIMENT}/simulation.json",
        timeline=f"{EXPERIMENT}/timeline.json",
    log:
        "results/logs/simulate/{experiment}.log",
    wildcard_constraints:
        experiment=names_pattern(SIMULATED),
    conda:
        ENVIRONMENT
    params:
        code=code_digest("llmpq.simulate.write"),
    message:
        "Simulate the plans of {wildcards.experiment}, whose devices are not here"
    script:
        "../scripts/simulate.py"


rule reference:
    input:
        checkpoint="resources/models/{model}/checkpoint",
        texts=lambda wildcards: expand(
            "resources/texts/{text}.txt",
            text=entry("evaluate", wildcards.evaluate)["texts"],
        ),
    output:
        "results/references/{model}/{evaluate}.safetensors",
    log:
        "results/logs/reference/{model}/{evaluate}.log",
    benchmark:
        "results/benchmarks/reference/{model}/{evaluate}.tsv"
    conda:
        ENVIRONMENT
    params:
        evaluate=of_entry("evaluate", "region windows window_tokens stride"),
        code=code_digest("llmpq.evaluate.reference", "llmpq.text"),
    message:
        "Read the texts of {wildcards.evaluate} with {wildcards.model} at 16 bits"
    script:
        "../scripts/reference.py"


rule evaluate:
    input:
        plan=f"{RUN}/plan.json",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
        quantised=quantised_weights,
        texts=lambda wildcards: expand(
            "resources/texts/{text}.txt",
            text=evaluation_texts(experiment(wildcards)["evaluate"]),
        ),
        reference=if_compared("results/references/{model}/{evaluate}.safetensors"),
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
        "Quality of {wildcards.experiment} as {wildcards.strategy} planned it"
    script:
        "../scripts/evaluate.py"
