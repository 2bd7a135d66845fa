import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrkit.errors import UserError
from ctrkit.request import Request, numbered_requests, read_requests

REQUEST: dict[str, Any] = {
    "user": {"age": None, "recent": [1, 2]},
    "items": [{"id": 1, "tags": []}, {"id": 2, "tags": ["x"]}],
    "context": {"hour": 3},
}


def test_rows_and_columns_survive_json() -> None:
    columns = {**REQUEST, "items": {"id": [1, 2], "tags": [[], ["x"]]}, "context": [{"hour": 1}, {"hour": 2}]}
    for content in (REQUEST, columns):
        request = Request.from_json(json.loads(json.dumps(content)))
        assert request.num_ads == 2
        assert request.to_json() == content


def test_context_may_be_absent() -> None:
    request = Request.from_json({"user": {}, "items": []})
    assert request == Request({}, [], {})
    assert request.num_ads == 0
    assert Request.from_json({"user": {}, "items": {}, "context": None}).context == {}


def test_numpy_values_become_json() -> None:
    items = {"id": np.array([1, 2]), "x": np.array([0.5, np.nan], np.float32), "s": np.array(["a", None], object)}
    request = Request({"age": np.int64(3), "x": math.nan, "ok": np.True_, "recent": np.array([7])}, items)
    assert json.loads(json.dumps(request.to_json(), allow_nan=False)) == {
        "user": {"age": 3, "x": None, "ok": True, "recent": [7]},
        "items": {"id": [1, 2], "x": [0.5, None], "s": ["a", None]},
        "context": {},
    }


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([], "a request is an object .*got a list"),
    "null": (None, "got null"),
    "no user": ({"items": []}, "no 'user'"),
    "no items": ({"user": {}}, "no 'items'"),
    "other part": ({**REQUEST, "ads": []}, "no part 'ads'; its parts are user, items, context"),
    "user a list": ({**REQUEST, "user": []}, "'user' is an object of values by name, got a list"),
    "items a number": ({**REQUEST, "items": 3}, "'items' is an object or a list of objects, got a number"),
    "items text": ({**REQUEST, "items": "abc"}, "'items' is .*got a string"),
    "item a number": ({**REQUEST, "items": [{}, 3]}, r"items\[1\] is an object of values by name, got a number"),
    "column a number": ({**REQUEST, "items": {"id": 3}}, r"items\['id'\] is a list with one value an ad, got a number"),
    "columns of two lengths": (
        {**REQUEST, "items": {"id": [1, 2], "x": [1]}}, r"items\['x'\] has 1 values, the column before it 2",
    ),
    "context true": ({**REQUEST, "context": True}, "'context' is .*got a boolean"),
    "context of numbers": ({**REQUEST, "context": [1]}, r"context\[0\] is an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        Request.from_json(content)


def test_reads_a_file_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({**REQUEST, "user": {"age": i}}) + "\n" for i in range(3)))
    requests = list(read_requests(path))
    assert [request.user for request in requests] == [{"age": 0}, {"age": 1}, {"age": 2}]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    line = json.dumps(REQUEST)
    path.write_text(f"\n{line}\n  \t\n\r\n{line}\n\n")
    assert [number for number, _ in numbered_requests(path)] == [2, 5]
    assert [request.to_json() for request in read_requests(path)] == [REQUEST, REQUEST]


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n"])
def test_a_file_without_a_request_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"requests\.jsonl: holds no request; give a file with one request a line"):
        next(read_requests(path))


LINES = {
    "no JSON": b"{",
    "no request": b"[]",
    "NaN": b'{"user": {"age": NaN}, "items": []}',
    "no UTF-8": b'{"user": {"age": "\xff"}, "items": []}',
    "very deep": b"[" * 200_000,
    "very long number": b'{"user": {"age": ' + b"9" * 5000 + b'}, "items": []}',
}


@pytest.mark.parametrize("case", LINES)
def test_an_error_names_file_and_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "requests.jsonl"
    good = json.dumps(REQUEST).encode()
    path.write_bytes(b"\n".join([good, LINES[case], good]) + b"\n")
    requests = read_requests(path)
    next(requests)
    with pytest.raises(UserError, match=r"requests\.jsonl, line 2: "):
        next(requests)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            next(read_requests(path))
