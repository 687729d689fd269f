"""Compare the strategies of an experiment on one page, record everything in MLflow, and pack it for someone else."""


rule report:
    input:
        plans=strategy_files("plan.json"),
        runs=if_served(strategy_files("serve.json", "timeline.json", "quality.json")),
        simulation=if_simulated("simulation.json", "timeline.json"),
        problem=f"{EXPERIMENT}/problem.json",
        explain=if_explained,
        pareto=f"{EXPERIMENT}/pareto.json",
        indicator=if_served(for_experiment("results/indicators/{model}/{quantizer}/{indicator}.json")),
        costs=if_served(cost_files),
    output:
        summary=f"{EXPERIMENT}/summary.json",
        table=f"{EXPERIMENT}/summary.csv",
        page=report(
            f"{EXPERIMENT}/report.html",
            caption="../report/comparison.rst",
            category="Comparison",
            labels={"experiment": "{experiment}"},
        ),
        figures=directory(f"{EXPERIMENT}/figures"),
    log:
        "results/logs/report/{experiment}.log",
    conda:
        ENVIRONMENT
    params:
        strategies=lambda wildcards: experiment(wildcards)["strategies"],
        code=code_digest("llmpq.report.*"),
    message:
        "Compare the strategies of {wildcards.experiment}"
    script:
        "../scripts/report.py"


rule track:
    input:
        config=f"{EXPERIMENT}/config.yaml",
        plans=strategy_files("plan.json"),
        runs=if_served(
            strategy_files(
                "requests.jsonl",
                "serve.json",
                "timeline.json",
                "simulated.json",
                "quality.json",
            )
        ),
        simulation=if_simulated("simulation.json", "timeline.json"),
        report=rules.report.output,
        explain=if_explained,
        pareto=f"{EXPERIMENT}/pareto.json",
        problem=f"{EXPERIMENT}/problem.json",
        workload=if_served(for_experiment(f"{EXPERIMENT}/workload.json")),
        model=if_served(for_experiment("resources/models/{model}/model.json")),
        profiles=if_served(profile_files),
        costs=if_served(cost_files),
        links=if_served(for_experiment("results/links/{profile}/{cluster}.json")),
        calibration=if_served(for_experiment(CALIBRATION)),
        quantised=if_served(quantised_weights),
        indicator=if_served(for_experiment("results/indicators/{model}/{quantizer}/{indicator}.json")),
        reference=if_served(if_compared("results/references/{model}/{evaluate}.safetensors")),
    output:
        f"{EXPERIMENT}/mlflow.json",
    log:
        "results/logs/track/{experiment}.log",
    conda:
        ENVIRONMENT
    params:
        tracking=of_experiment("tracking"),
        code=code_digest("llmpq.track"),
    message:
        "Record {wildcards.experiment} in MLflow"
    script:
        "../scripts/track.py"


rule archive:
    input:
        lambda wildcards: targets(experiment(wildcards)),
    output:
        "results/archives/{experiment}.tar.gz",
    log:
        "results/logs/archive/{experiment}.log",
    conda:
        ENVIRONMENT
    params:
        experiment=lambda wildcards: experiment(wildcards),
        code=code_digest("llmpq.archive"),
    message:
        "Pack {wildcards.experiment}"
    script:
        "../scripts/archive.py"
