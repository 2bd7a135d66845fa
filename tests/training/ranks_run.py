"""`ctrkit train`, writing down every step's losses: `python -m tests.training.ranks_run FILE ARGUMENTS`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ctrkit.cli import end, main
from ctrkit.training.progress import RunningLosses


def record() -> list[dict[str, float]]:
    """The loss terms of every step from now on."""
    steps: list[dict[str, float]] = []
    add = RunningLosses.add

    def noted(self: RunningLosses, losses: Mapping[str, float]) -> None:
        steps.append(dict(losses))
        add(self, losses)

    RunningLosses.add = noted  # type: ignore[method-assign]
    return steps


if __name__ == "__main__":
    Path(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}.pid").write_text(str(os.getpid()))
    steps = record()
    code = main(["train", *sys.argv[2:]])
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(steps))
    end(code)
