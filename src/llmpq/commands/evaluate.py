"""Perplexity of a plan's weights through the serving kernels."""

import argparse
from pathlib import Path

HELP = "perplexity of the very weights that a plan serves, through the serving kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the prepared checkpoint")
    parser.add_argument("texts", type=Path, nargs="+", help="text files")
    parser.add_argument("--plan", type=Path, help="plan.json whose assignment to evaluate")
    parser.add_argument("--option", help="evaluate one option in all layers instead of a plan")
    parser.add_argument(
        "--quantised",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folder of layer groups and ends, or those to use (not needed for options 32 and 16)",
    )
    parser.add_argument(
        "--ends",
        nargs=2,
        metavar=("EMBEDDING", "HEAD"),
        help="with --option: options of embedding and head (default: 16 16, and 32 32 with --option 32)",
    )
    parser.add_argument("--out", type=Path, help="where to write quality.json (with --plan)")
    parser.add_argument("--region", type=float, nargs=2, default=[0.5, 1.0], metavar=("FROM", "TO"), help="the part of each text to use")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-tokens", type=int, default=512)


def run(args: argparse.Namespace) -> int:
    import torch

    from llmpq import artifacts, planless
    from llmpq.errors import LlmpqError
    from llmpq.evaluate.perplexity import evaluate_quality, plan_ends, plan_options, write_quality
    from llmpq.model.spec import ModelSpec
    from llmpq.model.tokenizer import load_tokenizer
    from llmpq.text import token_windows

    if bool(args.plan) == bool(args.option) or (args.out and not args.plan):
        raise LlmpqError("give either --plan (and --out, to keep the result) or --option")
    if args.plan and args.ends:
        raise LlmpqError("--ends goes with --option; a plan says itself at what embedding and head are kept")
    plan = artifacts.read(args.plan, "plan") if args.plan else None
    if plan and (why := planless.reason(plan)) is not None:
        raise LlmpqError(f"{args.plan}: strategy {plan['strategy']} has no plan to evaluate: {why}")
    options = plan_options(plan) if plan else [args.option] * ModelSpec.from_directory(args.checkpoint).layers
    stems = [path.stem for path in args.texts]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise LlmpqError(f"two of the texts are called '{twice}', by which quality.json lists them; rename one")
    tokenizer = load_tokenizer(args.checkpoint)
    cut = {"windows": args.windows, "tokens": args.window_tokens}
    texts = {path.stem: torch.tensor(token_windows(tokenizer, path, args.region, **cut)) for path in args.texts}
    ends = plan_ends(plan) if plan else tuple(args.ends or ["32" if args.option == "32" else "16"] * 2)
    body = evaluate_quality(args.checkpoint, args.quantised, options, texts, ends=ends)
    for row in body["texts"]:
        print(
            f"{row['text']}: perplexity {row['perplexity']:.3f} (nll {row['nll_mean']:.4f} ± {row['nll_se']:.4f}, {row['tokens']} tokens)"
        )
    if plan and args.out:
        write_quality(args.out, plan, body, inputs=[args.plan, *args.texts])
    return 0
