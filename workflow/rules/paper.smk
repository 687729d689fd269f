"""The paper's clusters from data sheets: problems and plans without a GPU, a model or torch. Not part of `all`; asked for by path."""

PAPER_CONFIG = sorted(str(path) for group in ("cluster", "device", "model") for path in (CONFIG / group).glob("*.yaml"))
PAPER = "results/paper/{row}-{generation}"


wildcard_constraints:
    row=r"[\w.-]+",
    generation="2023|today",


rule paper_problem:
    input:
        rows=str(CONFIG / "paper.yaml"),
        entries=PAPER_CONFIG,
    output:
        f"{PAPER}/problem.json",
    log:
        "results/logs/paper_problem/{row}-{generation}.log",
    conda:
        ENVIRONMENT
    params:
        code=code_digest("llmpq.cost.paper"),
    message:
        "Write the problem of {wildcards.row} from data sheets, kernels of {wildcards.generation}"
    script:
        "../scripts/paper_problem.py"


rule paper_plan:
    input:
        f"{PAPER}/problem.json",
    output:
        f"{PAPER}/plan.json",
    log:
        "results/logs/paper_plan/{row}-{generation}.log",
    benchmark:
        "results/benchmarks/paper_plan/{row}-{generation}.tsv"
    conda:
        ENVIRONMENT
    params:
        solver="highs",
        time_limit=60,
        gap=0.001,
        seed=0,
        code=code_digest("llmpq.planning"),
    message:
        "Plan {wildcards.row} with kernels of {wildcards.generation}"
    script:
        "../scripts/paper_plan.py"
