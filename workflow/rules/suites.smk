"""Every suite of config/experiment is a target: everything that its experiments make, and a page that compares them."""

for each_suite in SUITES:
    if workflow.is_rule(each_suite):
        sys.exit(f"llmpq: error: config/experiment/{each_suite}: the workflow has a rule of that name; give the folder another one")

    rule:
        name:
            each_suite
        input:
            suite_files(each_suite),
            f"results/suites/{each_suite}/report.html",
        localrule: True


rule suite_report:
    input:
        summaries=lambda wildcards: [f"results/experiments/{name}/summary.json" for name in suite_members(wildcards.suite)],
        plans=lambda wildcards: [
            f"results/experiments/{name}/{strategy}/plan.json"
            for name in suite_members(wildcards.suite)
            for strategy in EXPERIMENTS[name]["strategies"]
        ],
    output:
        page="results/suites/{suite}/report.html",
        data=directory("results/suites/{suite}/data"),
    log:
        "results/logs/suite_report/{suite}.log",
    wildcard_constraints:
        suite=names_pattern([*SUITES, "all"]),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        facts=lambda wildcards: {name: facts_of(EXPERIMENTS[name]) for name in suite_members(wildcards.suite)},
        code=code_digest("llmpq.suites.*"),
    message:
        "Compare the experiments of suite {wildcards.suite}"
    script:
        "../scripts/suite_report.py"
