"""``llmpq export``: the weights of a plan as a checkpoint that other programs load."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmpq.export.target import Target

HELP = "write the weights of a plan as a checkpoint of another format, without quantising again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan", type=Path, nargs="?", metavar="PLAN.json", help="the plan whose options to export; its embedding and head must be at 16"
    )
    parser.add_argument("--option", help="in place of a plan: one option in all layers, embedding and head at 16")
    parser.add_argument(
        "--to",
        nargs=2,
        required=True,
        metavar=("FORMAT", "DIR"),
        help="compressed-tensors (read by transformers and vLLM; options 16, 8, w8a8, 4 and their symmetric variants), transformers (the "
        "same), vllm (the same, with serve.sh and settings for the plan's pipeline) or gptq (read by GPTQModel and vLLM; 16, 8, 4, 3, 2), "
        "and the directory to write",
    )
    parser.add_argument("--problem", type=Path, metavar="PROBLEM.json", help="vllm: the problem of the plan, which has the workload")
    parser.add_argument("--platform", choices=("cuda", "cpu"), help="vllm: what it runs on (default: cuda)")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="checkpoint directory of the model")
    parser.add_argument(
        "--quantised",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of layers (for example results/quantised/NAME/gptq); without them options 16 and 32 are read from the checkpoint",
    )
    parser.add_argument(
        "--same-as",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="serve.json, quality.json or another export.json whose weights these must be",
    )


def run(args: argparse.Namespace) -> int:
    """Export; prints what was written and the digest of its weights."""
    from llmpq.export.target import ExportError
    from llmpq.export.targets import target_named
    from llmpq.export.vllm import Vllm

    if bool(args.plan) == bool(args.option):
        raise ExportError("give either PLAN.json or --option")
    target, out = target_named(args.to[0], args.platform), Path(args.to[1])
    if isinstance(target, Vllm):
        record = _export_for_vllm(args, target.platform)
    elif args.problem or args.platform:
        raise ExportError(f"--problem and --platform are for --to vllm, not {target.name}")
    else:
        record = _export(args, target)
    size = sum(record["files"].values()) / 2**20
    print(f"{out}: {target.name}, {len(record['options'])} layers, {size:.1f} MiB, {record['dtype']}, weights {record['weights_sha256']}")
    return 0


def _export_for_vllm(args: argparse.Namespace, platform: str) -> dict[str, Any]:
    from llmpq.export.plan import export_plan
    from llmpq.export.target import ExportError

    if not (args.plan and args.problem):
        raise ExportError("--to vllm needs PLAN.json and --problem PROBLEM.json: pipeline, cut and batches come from them")
    given = (args.plan, args.problem, args.checkpoint, args.quantised, args.to[1])
    return export_plan(*given, platform=platform, same_as=_weights_of_all(args.same_as))


def _export(args: argparse.Namespace, target: "Target") -> dict[str, Any]:
    """The checkpoint alone."""
    from llmpq import artifacts
    from llmpq.export.assignment import Assignment
    from llmpq.export.write import export_checkpoint
    from llmpq.model.spec import ModelSpec

    if args.plan:
        assignment = Assignment.of_plan(artifacts.read(args.plan, "plan"), str(args.plan))
    else:
        assignment = Assignment.uniform(args.option, ModelSpec.from_directory(args.checkpoint).layers)
    same_as, inputs = _weights_of_all(args.same_as), (args.plan,) if args.plan else ()
    return export_checkpoint(args.checkpoint, args.quantised, assignment, target, args.to[1], same_as=same_as, inputs=inputs)


def _weights_of_all(paths: list[Path]) -> dict[str, str]:
    return {str(path): _weights_of(path) for path in paths}


def _weights_of(path: Path) -> str:
    """weights_sha256 of a serve.json, quality.json or export.json, told apart by name."""
    from llmpq import artifacts, planless
    from llmpq.export.target import ExportError

    kind = next((kind for kind in ("quality", "export") if kind in path.name), "serve")
    document = artifacts.read(path, kind)
    if (why := planless.reason(document)) is not None:
        raise ExportError(f"{path}: is of a strategy without a plan: {why}")
    return str(document["weights_sha256"])
