"""Quality of a plan's weights through the serving kernels: perplexity, distance from 16 bit, multiple choice."""

import argparse
from pathlib import Path
from typing import Any

HELP = "perplexity of the very weights that a plan serves, their distance from 16 bit, and questions, through the serving kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the prepared checkpoint")
    parser.add_argument("texts", type=Path, nargs="+", help="text files, for example resources/texts/news.txt")
    parser.add_argument("--plan", type=Path, help="plan.json whose assignment to evaluate")
    parser.add_argument("--option", help="evaluate one option in all layers instead of a plan")
    parser.add_argument(
        "--quantised",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of layers and ends (for example results/quantised/NAME/gptq results/quantised/NAME/ends); without them options "
        "16 and 32 are read from the checkpoint",
    )
    parser.add_argument(
        "--ends",
        nargs=2,
        metavar=("EMBEDDING", "HEAD"),
        help="with --option: options of embedding and head (default: 16 16, and 32 32 with --option 32)",
    )
    parser.add_argument("--out", type=Path, help="where to write quality.json (with --plan)")
    parser.add_argument(
        "--region", type=float, nargs=2, default=[0.5, 1.0], metavar=("FROM", "TO"), help="the part of each text to use (default: 0.5 1)"
    )
    parser.add_argument(
        "--windows", type=int, default=8, help="windows per text, spread evenly; 0: all that the region holds (default: %(default)s)"
    )
    parser.add_argument("--window-tokens", type=int, default=512, help="tokens in each (default: %(default)s)")
    parser.add_argument("--stride", type=int, help="score the last so many tokens of a window, the others are context (default: all)")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="compare with this model at 16 bit, kept in FILE (made and written where it is missing)",
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="continuation, lambada_openai, piqa, arc_easy")
    parser.add_argument(
        "--sources", nargs="+", default=[], metavar="TASK=FILE", help="local data of lm-eval's tasks (default: from the Hugging Face hub)"
    )
    parser.add_argument(
        "--news", type=Path, default=Path("resources/texts/news.txt"), help="text of the task continuation (default: %(default)s)"
    )
    parser.add_argument("--questions", type=int, help="of each task (default: 100 of continuation, all of the others)")


def run(args: argparse.Namespace) -> int:
    import torch

    from llmpq import artifacts, planless
    from llmpq.errors import LlmpqError
    from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options, write_quality
    from llmpq.evaluate.tasks import make_tasks
    from llmpq.model.spec import ModelSpec
    from llmpq.model.tokenizer import load_tokenizer
    from llmpq.text import scored_windows

    _check(args)
    plan = artifacts.read(args.plan, "plan") if args.plan else None
    if plan and (why := planless.reason(plan)) is not None:
        raise LlmpqError(f"{args.plan}: strategy {plan['strategy']} has no plan to evaluate: {why}")
    options = plan_options(plan) if plan else [args.option] * ModelSpec.from_directory(args.checkpoint).layers
    tokenizer = load_tokenizer(args.checkpoint)
    cut = {"windows": args.windows or None, "tokens": args.window_tokens, "stride": args.stride}
    texts = {path.stem: torch.tensor(scored_windows(tokenizer, path, args.region, **cut)) for path in args.texts}
    asked = {"news": args.news, "region": args.region, "questions": args.questions, "sources": dict(map(_source, args.sources))}
    tasks = make_tasks(args.tasks, tokenizer, **asked)
    ends = plan_ends(plan) if plan else tuple(args.ends or ["32" if args.option == "32" else "16"] * 2)
    reference = _reference(args, texts) if args.reference else None
    found: dict[str, Any] = {"stride": args.stride, "reference": reference, "tasks": tasks}
    body = evaluate_quality(args.checkpoint, args.quantised, options, texts, ends=ends, **found)
    _show(body)
    if plan and args.out:
        write_quality(args.out, plan, body, inputs=[args.plan, *args.texts, *([args.reference] if args.reference else [])])
    return 0


def _check(args: argparse.Namespace) -> None:
    from llmpq.errors import LlmpqError

    if bool(args.plan) == bool(args.option) or (args.out and not args.plan):
        raise LlmpqError("give either --plan (and --out, to keep the result) or --option")
    if args.plan and args.ends:
        raise LlmpqError("--ends goes with --option; a plan says itself at what embedding and head are kept")
    if args.stride is not None and not 1 <= args.stride <= args.window_tokens:
        raise LlmpqError(f"--stride is {args.stride}; expected 1 to the window's {args.window_tokens} tokens")
    if args.questions is not None and args.questions < 1:
        raise LlmpqError(f"--questions is {args.questions}; expected 1 or more")
    stems = [path.stem for path in args.texts]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise LlmpqError(f"two of the texts are called '{twice}', by which quality.json lists them; rename one")


def _source(given: str) -> tuple[str, str]:
    from llmpq.errors import LlmpqError

    task, separator, file = given.partition("=")
    if not separator:
        raise LlmpqError(f"--sources is given '{given}'; expected TASK=FILE")
    return task, file


def _reference(args: argparse.Namespace, texts: dict[str, Any]) -> Any:
    from llmpq.evaluate.reference import make_reference, read_reference, write_reference

    if not args.reference.is_file():
        write_reference(args.reference, make_reference(args.checkpoint, texts, stride=args.stride))
    return read_reference(args.reference)


def _show(body: dict[str, Any]) -> None:
    for row in body["texts"]:
        interval = "" if row["perplexity_low"] is None else f"95 % {row['perplexity_low']:.3f} to {row['perplexity_high']:.3f}, "
        nll = f"nll {row['nll_mean']:.4f} ± {row['nll_se']:.4f}"
        print(f"{row['text']}: perplexity {row['perplexity']:.3f} ({interval}{nll}, {row['tokens']} tokens)")
        if "kl" in row:
            print(f"{row['text']}: KL from 16 bit {row['kl']['mean']:.5f} nats a token, the same first choice at {row['top1']['mean']:.1%}")
    for task in body["tasks"]:
        interval = f"95 % {task['low']:.1%} to {task['high']:.1%}"
        print(f"{task['task']}: {task['accuracy']:.1%} right ({interval}, {task['questions']} questions)")
