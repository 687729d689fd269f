"""Model, texts and requests: everything that is fetched or made once."""


rule prepare_model:
    message:
        "Prepare the model {wildcards.model}"
    output:
        model="resources/models/{model}/model.json",
        checkpoint=directory("resources/models/{model}/checkpoint"),
    params:
        model=of_entry("model"),
        code=code_digest("llmpq.model.prepare"),
    log:
        "results/logs/prepare_model/{model}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/prepare_model.py"


rule prepare_text:
    message:
        "Prepare the text {wildcards.text}"
    output:
        "resources/texts/{text}.txt",
    params:
        code=code_digest("llmpq.text"),
    log:
        "results/logs/prepare_text/{text}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/prepare_text.py"


rule workload:
    message:
        "Cut the requests of {wildcards.experiment} from their text"
    input:
        text=lambda wildcards: f"resources/texts/{EXPERIMENTS[wildcards.experiment]['workload']['text']}.txt",
        checkpoint=for_experiment("resources/models/{model}/checkpoint"),
    output:
        f"{EXPERIMENT}/workload.json",
    params:
        workload=of_experiment("workload", "requests prompt_tokens prompt_tokens_min new_tokens ignore_eos text region seed"),
        code=code_digest("llmpq.workload"),
    log:
        "results/logs/workload/{experiment}.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/workload.py"
