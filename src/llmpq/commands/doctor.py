"""Say what this machine has, and what is missing for what."""

import argparse

HELP = "say what this machine has (devices, kernels, solvers, packages) and what is missing for what"
SIGNS = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from llmpq.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            print(f"{SIGNS[finding.state]}  {finding.topic:<10} {finding.text}", flush=True)
    missing = sum(finding.state == "missing" for finding in findings)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print(f"{missing} missing" if missing else "nothing is missing for the default experiment")
    return 1 if missing else 0
