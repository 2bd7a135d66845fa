"""What the tests of the server share."""

from pathlib import Path

import pytest

from tests.serving.server.harness import push


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models with version 1 of `tiny`."""
    push(tmp_path / "models", 1)
    return tmp_path / "models"
