"""Studies of the indicators on the real model (config/validity.yaml): do they rank assignments as measured? Asked for by path, not part of `all`."""

STUDY = "results/validity/{study}"


wildcard_constraints:
    study=r"[\w.-]+",


rule validity:
    input:
        checkpoint=study_files("resources/models/{model}/checkpoint"),
        quantised=study_files("results/quantised/{model}/{quantizer}/{group}"),
        indicators=study_files("results/indicators/{model}/{quantizer}/{indicator}.json"),
        stability=study_files("results/indicators/{model}/{other}/{own}.json"),
        texts=study_files("resources/texts/{text}.txt"),
    output:
        f"{STUDY}.json",
        f"{STUDY}.html",
        f"{STUDY}.csv",
    log:
        "results/logs/validity/{study}.log",
    benchmark:
        "results/benchmarks/validity/{study}.tsv"
    conda:
        ENVIRONMENT
    threads: all_cores
    params:
        study=study,
        code=code_digest("llmpq.validity.*"),
    message:
        "Do the indicators of study {wildcards.study} tell what options do?"
    script:
        "../scripts/validity.py"
