"""A bundle as a model of a Triton repository."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ctrkit.errors import UserError
from ctrkit_serving.scorer import Scorer
from ctrkit_serving.triton import main, write_triton_model
from tests.serving.tiny import CONTEXT, ITEMS, USER, make_bundle


def test_writes_what_triton_reads(tmp_path: Path) -> None:
    """The graph scores as the scorer does, from its folder alone; the configuration names its tensors."""
    scorer = Scorer.load(make_bundle(tmp_path / "bundle").directory)
    place = write_triton_model(tmp_path / "bundle", tmp_path / "repository", name="ctr", version=7)
    assert place == tmp_path / "repository" / "ctr" / "7"
    session = onnxruntime.InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = scorer.encode(USER, ITEMS, CONTEXT)
    np.testing.assert_array_equal(session.run(["probability"], feeds)[0], scorer.score(USER, ITEMS, CONTEXT))
    text = (place.parent / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text
    assert "max_batch_size: 0" in text
    assert '{ name: "ids_user" data_type: TYPE_INT64 dims: [ -1, 1 ] }' in text
    assert '{ name: "tags_length" data_type: TYPE_INT64 dims: [ -1 ] }' in text
    assert '{ name: "probability" data_type: TYPE_FP32 dims: [ -1 ] }' in text
    for name, spec in scorer.inputs.items():
        assert f'name: "{name}" data_type: TYPE_{"INT64" if spec.dtype == "int64" else "FP32"}' in text
    assert {path.name for path in place.parent.iterdir() if not path.name.startswith(".")} == {"7", "config.pbtxt"}


def test_a_second_version_stands_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    for version in ("1", "2"):
        main([str(tmp_path / "bundle"), str(tmp_path / "repository"), "--name", "ctr", "--version", version])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "repository" / "ctr" / "2")
    assert (tmp_path / "repository" / "ctr" / "1" / "model.onnx").exists()


def test_refuses_what_triton_would_not_see(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    for name, version in (("../ctr", 1), ("ctr", 0)):
        with pytest.raises(UserError, match="a plain name and a whole number above zero"):
            write_triton_model(tmp_path / "bundle", tmp_path / "repository", name=name, version=version)
    with pytest.raises(SystemExit, match="no bundle"):
        main([str(tmp_path), str(tmp_path / "repository"), "--name", "ctr", "--version", "1"])
