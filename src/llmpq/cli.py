"""The command ``llmpq``: each sub-command is a module of llmpq.commands with HELP, add_arguments(parser) and run(args)."""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from llmpq import __version__, commands
from llmpq.errors import LlmpqError

DESCRIPTION = "Plan, quantise, serve and measure a language model on a pipeline of unequal devices."
ORDER = (
    "doctor",
    "config",
    "prepare",
    "workload",
    "calibrate",
    "quantise",
    "quantise-ends",
    "profile",
    "links",
    "fit",
    "indicator",
    "problem",
    "plan",
    "check",
    "simulate",
    "explain",
    "pareto",
    "serve",
    "evaluate",
    "export",
    "report",
    "track",
    "ui",
    "validity",
    "catalogue",
    "bench-plan",
    "bench-serve",
    "bench-faults",
    "bench-backends",
)  # the way the work flows; others follow by name


def command_names() -> list[str]:
    """Names of the sub-commands, in the order of the work."""
    found = {path.stem.replace("_", "-") for path in Path(commands.__path__[0]).glob("[a-z]*.py")}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def help_of(name: str) -> str:
    """HELP of one command, read without importing it: some stages take seconds to import."""
    file = Path(commands.__path__[0]) / f"{name.replace('-', '_')}.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "HELP" for target in node.targets):
            return str(ast.literal_eval(node.value))
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 when it found something, 2 for a wrong call or an error the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="llmpq", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"llmpq {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in command_names():
        text = help_of(name)
        command = choices.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(f"llmpq.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    try:
        args = parser.parse_args(arguments)
        return int(args.run(args))
    except LlmpqError as error:
        print(f"llmpq: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llmpq: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise  # not about a file of the user's
        print(f"llmpq: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
