"""Time one decoder layer, the embedding and the head on a device of this machine."""

import argparse
from pathlib import Path

HELP = "time one decoder layer, the embedding and the head on a device of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the prepared checkpoint")
    parser.add_argument("out", type=Path, help="where to write the profile")
    parser.add_argument("--model", help="name of the model (default: that of model.json beside the checkpoint)")
    parser.add_argument("--device", default="cpu", help="name of the device (default: cpu)")
    parser.add_argument("--cores", type=int, nargs="+", help="core numbers to run on (default: the least busy one)")
    parser.add_argument("--slowdown", type=float, default=1.0, help="emulate a device this many times slower")
    parser.add_argument(
        "--options",
        nargs="+",
        default=["16", "bf16", "8", "w8a8-outlier", "w8a8", "4", "3"],
        help="options to time; 4/kv8 is 4 with an 8-bit cache",
    )
    parser.add_argument("--end-options", nargs="+", default=["16", "bf16", "8", "w8a8"], help="options of embedding and head to time")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 128, 160])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    from llmpq.profile.layers import profile_device

    model = args.model or args.checkpoint.resolve().parent.name
    source = "emulated" if args.slowdown > 1 else "measured"
    device = {"name": args.device, "kind": "cpu", "cores": len(args.cores or [0]), "slowdown": args.slowdown, "source": source}
    settings = {key: getattr(args, key) for key in ("micro_batches", "prompt_tokens", "contexts", "repeats", "warmup")}
    chosen = {"options": args.options, "end_options": args.end_options, "cores": args.cores}
    document = profile_device(args.checkpoint, model, device, settings, args.out, **chosen)
    print(f"{args.out}: {len(document['rows'])} rows in {document['seconds']:.0f} s")
    return 0
