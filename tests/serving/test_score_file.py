import json
from pathlib import Path

import numpy as np
import pytest

from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit_serving.score_file import score_file
from tests.serving.tiny import CONTEXT, ITEMS, REQUEST, USER, Weights, expected_scores, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("score_file") / "bundle").directory


def _write(path: Path, *contents: object) -> Path:
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return path


def test_scores_each_line_in_order(bundle: Path, tmp_path: Path) -> None:
    columns = {name: [item[name] for item in ITEMS[:2]] for name in ITEMS[0]}
    requests = _write(
        tmp_path / "requests.jsonl",
        REQUEST.to_json(),
        {"user": USER, "items": columns, "context": CONTEXT},
        {"user": USER, "items": [], "context": CONTEXT},
    )
    done = score_file(bundle, requests, tmp_path / "out.jsonl")
    lines = [json.loads(line)["scores"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(scores) for scores in lines] == [4, 2, 0]
    expected = expected_scores(Weights(), USER, ITEMS, CONTEXT)
    np.testing.assert_allclose(lines[0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lines[1], expected[:2], rtol=0, atol=1e-6)
    assert (done.requests, done.ads) == (3, 6)
    assert done.counts["age"] == Counts(values=3)
    assert done.counts["item"].missing == 1


def test_an_error_names_the_line_and_leaves_no_file(bundle: Path, tmp_path: Path) -> None:
    content = REQUEST.to_json()
    requests = _write(tmp_path / "requests.jsonl", content, {**content, "user": {"age": "35+"}})
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"requests\.jsonl, line 2: user: no value for feature 'recent_items'"):
        score_file(bundle, requests, out)
    out.write_text("old")
    with pytest.raises(UserError, match="line 2"):
        score_file(bundle, requests, out)
    assert out.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}


def test_a_line_that_is_no_json_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text(f"{json.dumps(REQUEST.to_json())}\n{{user: 1}}\n")
    with pytest.raises(UserError, match=r"requests\.jsonl, line 2: not JSON \(Expecting property name"):
        score_file(bundle, tmp_path / "requests.jsonl", tmp_path / "out.jsonl")


def test_blank_lines_have_no_scores_and_count_as_lines(bundle: Path, tmp_path: Path) -> None:
    line = json.dumps(REQUEST.to_json())
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    requests.write_text(f"\n{line}\n\n{line}\n")
    assert score_file(bundle, requests, out).requests == 2
    assert len(out.read_text().splitlines()) == 2
    requests.write_text(f'\n{line}\n\n{{"user": {{}}, "items": []}}\n')
    with pytest.raises(UserError, match="line 4: user: no value"):
        score_file(bundle, requests, out)


def test_a_file_without_a_request_leaves_no_scores(bundle: Path, tmp_path: Path) -> None:
    requests, out = _write(tmp_path / "requests.jsonl"), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="holds no request"):
        score_file(bundle, requests, out)
    assert not out.exists()


def test_ignores_unknown_names_if_asked(bundle: Path, tmp_path: Path) -> None:
    requests = _write(tmp_path / "requests.jsonl", {**REQUEST.to_json(), "user": {**USER, "name": "Ann"}})
    with pytest.raises(UserError, match="line 1: user: the model knows no 'name'"):
        score_file(bundle, requests, tmp_path / "out.jsonl")
    assert score_file(bundle, requests, tmp_path / "out.jsonl", ignore_unknown=True).ads == 4


def test_a_place_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    requests = _write(tmp_path / "requests.jsonl", REQUEST.to_json())
    with pytest.raises(UserError, match=r"requests\.jsonl/out\.jsonl: cannot be written"):
        score_file(bundle, requests, requests / "out.jsonl")
    with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read"):
        score_file(bundle, tmp_path / "nothing.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"):
        score_file(bundle, requests, tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "folder"}


def test_scores_do_not_overwrite_requests_or_lie_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    requests = _write(tmp_path / "requests.jsonl", REQUEST.to_json())
    before = requests.read_bytes()
    with pytest.raises(UserError, match="is the file of requests"):
        score_file(bundle, requests, tmp_path / "x" / ".." / "requests.jsonl")
    with pytest.raises(UserError, match="lies in the bundle"):
        score_file(bundle, requests, bundle / "scores.jsonl")
    assert requests.read_bytes() == before
    score_file(bundle, requests, tmp_path / "scores.jsonl")  # the bundle is whole still
