"""What several test files share: one small job, done once."""

from pathlib import Path

import pytest

from ctrkit.cli import main
from tests import small_recipe


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a whole `ctrkit run` of the small recipe, which lies beside it; copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = small_recipe.write(folder)
    assert main(["run", str(recipe), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"
