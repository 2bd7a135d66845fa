"""The same training on a GPU; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch

from ctrkit.cli import main
from tests import small_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_gpu_has_the_losses_of_the_cpu(tmp_path: Path) -> None:
    recipe = small_recipe.write(tmp_path)
    histories = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        settings = (f"train.device={device}", "towers.booster.dropout=0.0", "data.synthetic.rows=6000")
        chosen = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", str(recipe), "--model", "rocket", "--out", str(out), "--quiet", *chosen]) == 0
        lines = (out / "models" / "rocket" / "metrics.jsonl").read_text().splitlines()
        histories[device] = [json.loads(line)["losses"] for line in lines]
    assert len(histories["cpu"]) == 4
    for on_cpu, on_gpu in zip(histories["cpu"], histories["cuda"], strict=True):
        assert on_gpu == pytest.approx(on_cpu, abs=1e-3)
