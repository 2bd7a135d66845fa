"""`ctrkit serve`: its options, and what it does."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ctrkit.errors import UserError
from ctrkit_serving.server.settings import Settings

_DEFAULTS = {field.name: field.default for field in fields(Settings)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ctrkit serve`; every default is that of `Settings`."""
    parser.add_argument(
        "models_dir", metavar="MODELS_DIR", type=Path, help="folder of bundles, MODELS_DIR/NAME/VERSION/"
    )
    only = "serve this one only, and be ready only with it; can be repeated (default: all)"
    parser.add_argument("--model", dest="models", action="append", default=[], metavar="NAME", help=only)

    def option(name: str, kind: Any, text: str) -> None:
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        default = _DEFAULTS[name]
        shown = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, dest=name, type=kind, default=default, metavar="X", help=shown)

    option("host", str, "address to listen on")
    option("port", int, "port of HTTP; 0 for any free one")
    option("grpc_port", int, "port of gRPC; 0 for any free one (default: no gRPC)")
    option("workers", int, "worker processes; 0 for one a core")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="do not bind each worker to a core")
    option("queue", int, "requests that may wait in a worker; one more is answered 503")
    option(
        "deadline_ms",
        float,
        "deadline of a request that names none (header Timeout-Ms, parameter timeout, or gRPC's deadline)",
    )
    precision = "which graphs score; with int8, a version that has none is refused (default: exact)"
    parser.add_argument("--precision", choices=("exact", "int8"), default="exact", help=precision)
    option("max_body", int, "largest request, in bytes")
    option("max_arriving", int, "most bytes of requests that are still arriving at one worker")
    option("max_ads", int, "most ads in a request")
    option("max_connections", int, "most open connections of a worker")
    option("request_timeout_s", float, "seconds that a request may take to arrive")
    option("idle_timeout_s", float, "seconds after which a connection without a request is closed")
    option("poll_s", float, "seconds between two looks for new versions; 0: only management calls load them")
    option("latency_ads", int, "ads a request when a new version's latency is checked")
    option(
        "max_latency_ratio",
        float,
        "refuse a new version whose median latency is more than this times that of the one that serves; 0: never",
    )
    option("latency_budget_ms", float, "refuse a new version whose median latency is above this; 0: never")
    option("check_timeout_s", float, "seconds that the checks of a new version may take")
    option("drain_delay_s", float, "seconds to go on serving, not ready, after SIGTERM")
    option("grace_s", float, "seconds that requests under way have after that")
    token = (
        "holds the token that management calls must carry (default: the environment variable CTRKIT_TOKEN; with "
        "neither, they are refused)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=token)


def serve_command(options: argparse.Namespace) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT."""
    values = {name: getattr(options, name) for name in _DEFAULTS if hasattr(options, name)}
    values["models"] = tuple(options.models)
    from ctrkit_serving.server.supervisor import Supervisor  # ONNX Runtime comes with it

    Supervisor(Settings(**values, token=_token(options.token_file))).run()
    return {"text": "ended"}


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("CTRKIT_TOKEN")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no readable token ({error})") from error
