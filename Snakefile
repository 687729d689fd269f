"""llmpq: profile, quantise, plan, serve, evaluate and compare. `snakemake --cores 2 SUITE` runs a suite of config/experiment, `all` nearly all."""

from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


localrules:
    all,
    config_record,
    prepare_model,
    prepare_text,
    workload,
    fit,
    problem,
    links_on_nodes,
    serve_on_nodes,
    report,
    track,
    archive,


rule all:
    default_target: True
    input:
        suite_files("all") + ([] if "experiments" in config else ["results/suites/all/report.html"]),


include: "workflow/rules/prepare.smk"
include: "workflow/rules/quantise.smk"
include: "workflow/rules/profile.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/validity.smk"
include: "workflow/rules/serve.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/suites.smk"


onstart:
    begin_session(
        EXPERIMENTS,
        total=sum(job.rule.name not in ("all", *SUITES) for job in workflow.dag.needrun_jobs()),
    )


onsuccess:
    end_session()


onerror:
    end_session(failed=True)
