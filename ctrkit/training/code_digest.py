"""Which code trained a model."""

import hashlib
from functools import cache
from pathlib import Path

_ROOMS = (
    *("builders", "data", "encoding.py", "evaluation/held_out.py", "losses.py", "metrics", "nn", "objectives"),
    *("raw_values.py", "tables.py", "train_model.py", "training"),
)


@cache
def code_digest() -> str:
    """What identifies the source of all that a model's weights depend on beside recipe and log.

    It is in a model's `result.json` and not in its fingerprint: a model that other code has trained is still trained,
    but whoever compares models may want to know.
    """
    root = Path(__file__).parents[1]
    files = [
        file for room in _ROOMS for file in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]
