"""Show the recorded runs in the browser."""

import argparse
import os
import socket
import sys
from pathlib import Path

HELP = "show the recorded runs in the browser (MLflow on 127.0.0.1)"
HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")


def run(args: argparse.Namespace) -> int:
    from llmpq.errors import LlmpqError

    if not 1 <= args.port <= 65535:
        raise LlmpqError(f"--port {args.port}: a port is 1 to 65535")
    folder = (Path("results") / "mlflow").resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
    if not uri.startswith("sqlite:///"):
        print(f"the runs are recorded at {uri}: open that address")
        return 0
    if not Path(uri.removeprefix("sqlite:///")).is_file():
        raise LlmpqError(f"{uri.removeprefix('sqlite:///')}: nothing is recorded yet; run an experiment first (make run)")
    if not _free(args.port):
        raise LlmpqError(f"port {args.port} is in use on {HOST}: stop what uses it, or choose another one (make ui PORT={args.port + 1})")
    print(f"MLflow: http://{HOST}:{args.port} (Ctrl-C stops it)", flush=True)
    # One worker and no job runner: 0.5 GB of memory instead of 1.
    os.environ.update(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination", f"{folder}/artifacts"]
    os.execv(sys.executable, [*command, "--host", HOST, "--port", str(args.port), "--workers", "1"])


def _free(port: int) -> bool:
    """Whether nobody listens on the port; the bind refuses what a server's would."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
