"""The example for Ray Data computes what one process computes from all rows in memory."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ctrkit.metrics import evaluate_scores
from tests.evaluation.small_predictions import table, write

ROOT = Path(__file__).parents[2]


def test_equals_the_report_of_all_rows(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    content = table()
    for part in range(2):  # users are in both files
        write(tmp_path / "predictions" / f"{part}.parquet", content.slice(part * 2000, 2000))
    # Ray's own settings warn of each other.
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning:ray.data.context"]
    script = ROOT / "pipelines" / "ray_evaluate.py"
    command = [sys.executable, *warnings, str(script), str(tmp_path / "predictions"), "--shards", "3", "--cpus", "2"]
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of sockets have at most 107 characters
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    columns = (content[name].to_numpy(zero_copy_only=False) for name in ("label", "probability", "group"))
    assert json.loads(done.stdout.splitlines()[-1]) == evaluate_scores(*columns).as_dict()
