"""A scoring request: the raw values of one user, N ads and the context, and how it is written as JSON.

Values are named as the columns of the log are (`Schema`: a feature's `column`, or its name if it has none), so that
rows of the log make a request.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError

Row = Mapping[str, Any]
"""Raw values by name; None is a missing value."""
Column = Sequence[Any] | npt.NDArray[Any]
Items = Sequence[Row] | Mapping[str, Column]
"""N ads, row by row or (faster) column by column."""
Context = Row | Sequence[Row]
"""What is neither the user's nor the ad's: one row a request or one row an ad."""

_KEYS = ("user", "items", "context")


@dataclass(frozen=True)
class Request:
    """One user, N ads and the context, as raw values."""

    user: Row
    items: Items
    context: Context = field(default_factory=dict)

    @property
    def num_ads(self) -> int:
        """N."""
        if isinstance(self.items, Mapping):
            return len(next(iter(self.items.values()), ()))
        return len(self.items)

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Build from what `json.loads` gives: `{"user": {...}, "items": [...] or {...}, "context": {...} or [...]}`.

        Raises:
            UserError: a part is missing, unknown or of another form, or the columns of `items` differ in length.
        """
        if not isinstance(content, dict):
            raise UserError(f'a request is an object {{"user": ..., "items": ...}}, got {_form(content)}')
        unknown = [key for key in content if key not in _KEYS]
        if unknown:
            raise UserError(f"a request has no part {unknown[0]!r}; its parts are {', '.join(_KEYS)}")
        for key in ("user", "items"):
            if key not in content:
                raise UserError(f"the request has no {key!r}; give it, empty if the model needs none of it")
        context = content.get("context")
        request = cls(content["user"], content["items"], {} if context is None else context)
        request._check()
        return request

    def _check(self) -> None:
        if not isinstance(self.user, dict):
            raise UserError(f"'user' is an object of values by name, got {_form(self.user)}")
        for part, value in (("items", self.items), ("context", self.context)):
            if isinstance(value, list):
                for i, row in enumerate(value):
                    if not isinstance(row, dict):
                        raise UserError(f"{part}[{i}] is an object of values by name, got {_form(row)}")
            elif not isinstance(value, dict):
                raise UserError(f"'{part}' is an object or a list of objects, got {_form(value)}")
        if isinstance(self.items, dict):
            for name, column in self.items.items():
                if not isinstance(column, list):
                    raise UserError(f"items[{name!r}] is a list with one value an ad, got {_form(column)}")
                if len(column) != self.num_ads:
                    raise UserError(
                        f"items[{name!r}] has {len(column)} values, the column before it {self.num_ads}; "
                        "every column has one value an ad"
                    )

    def to_json(self) -> dict[str, Any]:
        """The same request as objects that `json.dumps` takes; NaN, which JSON has no word for, becomes null."""
        return {"user": _plain(self.user), "items": _plain(self.items), "context": _plain(self.context)}


@dataclass(frozen=True)
class Golden:
    """Requests with the scores that the exporter got for them."""

    requests: tuple[Request, ...]
    scores: tuple[tuple[float, ...], ...]
    """By request, one score an ad."""
    tolerance: float = 1e-5
    """Largest absolute difference from a score that a loader accepts."""
    approximate: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Likewise of the ways to a score that are not exact: `item_table` if it is kept in few bits, `int8` from features,
    `item_table_int8`."""
    approximate_tolerance: float = 1e-3
    """Likewise: on another machine a number may be rounded to the next of 256."""
    widths: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Scores of the narrower towers of a bundle that has several, by the width's name."""

    def to_json(self) -> dict[str, Any]:
        """As `golden.json` holds it."""
        return {
            "tolerance": self.tolerance,
            "approximate_tolerance": self.approximate_tolerance,
            "requests": [request.to_json() for request in self.requests],
            "scores": self.scores,
            "approximate": dict(self.approximate),
            **({"widths": dict(self.widths)} if self.widths else {}),
        }

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read what `to_json` gave.

        Raises:
            UserError: it has another form, no ad at all, or a number of scores other than that of ads.
        """
        try:
            golden = cls(
                tuple(Request.from_json(request) for request in content["requests"]),
                _scores(content["scores"]),
                float(content["tolerance"]),
                {name: _scores(scores) for name, scores in content["approximate"].items()},
                float(content["approximate_tolerance"]),
                {name: _scores(scores) for name, scores in content.get("widths", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"golden requests of another form ({error})") from error
        golden.check()
        return golden

    def check(self) -> None:
        """Raise UserError unless there is an ad, a finite score for each, and a tolerance."""
        if not any(request.num_ads for request in self.requests):
            raise UserError("golden requests hold no ad; a bundle needs at least one with its score")
        for scores in (self.scores, *self.approximate.values(), *self.widths.values()):
            if [request.num_ads for request in self.requests] != [len(of_ads) for of_ads in scores]:
                raise UserError("golden requests and scores differ in number; each ad has one score")
            if not all(np.isfinite(of_ads).all() for of_ads in scores):
                raise UserError("a golden score is not finite; the model is broken")
        for tolerance in (self.tolerance, self.approximate_tolerance):
            if not 0 <= tolerance < 1:
                raise UserError(f"golden tolerance {tolerance} is not in [0, 1)")


def _scores(content: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(score) for score in scores) for scores in content)


def read_requests(path: Path) -> Iterator[Request]:
    """Requests of a file with one JSON object a line, read as they are asked for; blank lines are skipped.

    Raises:
        UserError: the file cannot be read or holds no request, or a line is none; it names the line.
    """
    return (request for _, request in numbered_requests(path))


def numbered_requests(path: Path) -> Iterator[tuple[int, Request]]:
    """The same with the number of the line of each, from 1."""
    empty = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                empty = False
                try:
                    yield number, Request.from_json(json.loads(line, parse_constant=_no_constant))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error}); write one request a line") from error
                except (ValueError, RecursionError) as error:  # UserError is a ValueError
                    raise UserError(f"{path}, line {number}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file with one request a line") from error
    if empty:
        raise UserError(f"{path}: holds no request; give a file with one request a line")


def _no_constant(name: str) -> None:
    raise UserError(f"{name} is not JSON; write null for a missing value")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _form(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
