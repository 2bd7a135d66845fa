"""What every benchmark script shares: its arguments, the machine it ran on, a table, and one JSON line."""

import argparse
import datetime
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrkit.config.recipe import load_recipe
from ctrkit_serving.bench import machine

LIBRARIES = (
    "numpy", "torch", "torchrec", "fbgemm-gpu-cpu", "onnxruntime", "onnx", "pandas", "pyarrow", "polars",
    "scikit-learn", "scipy", "fuxictr", "deepctr-torch", "openvino", "torch-rechub",
)  # fmt: skip


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark has; add the script's own to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small run, about a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON to FILE too")
    return parser


def recipe_settings(recipe: Path, given: Sequence[str], *, quick: bool) -> list[str]:
    """What is set in a recipe: what the caller gives and, if `quick`, one epoch of a small log if it is synthetic."""
    if not quick:
        return list(given)
    synthetic = load_recipe(recipe, given).data.synthetic is not None
    return [*given, "train.epochs=1", *(["data.synthetic.rows=60000"] if synthetic else [])]


def environment() -> dict[str, Any]:
    """Hardware, versions of the libraries present, date (UTC) and git commit: what a number must be read with."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        **machine.environment(),
        "libraries": _versions(),
    }


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Print the rows as a Markdown table, aligned so that it reads as plain text too, and return it."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in [list(headers), *texts])) for i in range(len(headers))]
    rule = ["-" * width for width in widths]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [list(headers), rule, *texts]
    ]
    text = "\n".join(lines)
    print(text, flush=True)
    return text


def emit(result: Mapping[str, Any], out: Path | None = None) -> dict[str, Any]:
    """Print the environment and, as the last line, the result with it as one line of JSON; write that to `out` too.

    The key `environment` is added. Raises ValueError for a value that JSON has no word for (NaN, infinity).
    """
    where = environment()
    for name, value in where.items():
        print(f"{name}: {value}")
    whole = {**result, "environment": where}
    line = json.dumps(whole, allow_nan=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, allow_nan=False, indent=2) + "\n", encoding="utf-8")
    print(line, flush=True)
    return whole


def _versions() -> dict[str, str]:
    """Versions of those of LIBRARIES that are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The short commit, with `-dirty` if tracked files differ from it; None outside a checkout or without git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
