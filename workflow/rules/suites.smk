"""Every suite of config/experiment is a target: everything that its experiments make."""

for each_suite in SUITES:

    rule:
        name:
            each_suite
        input:
            suite_files(each_suite),
        localrule: True
