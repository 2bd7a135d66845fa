"""Scores of a file of requests."""

import json
from dataclasses import dataclass
from pathlib import Path

from ctrkit.atomic import atomic_file
from ctrkit.encoding import Counts
from ctrkit.errors import UserError
from ctrkit.request import numbered_requests
from ctrkit_serving.scorer import Scorer


@dataclass(frozen=True)
class Scored:
    """What `score_file` did."""

    requests: int
    ads: int
    counts: dict[str, Counts]
    """What became of the raw values, by feature."""


def score_file(
    bundle: Path | str, requests: Path, out: Path, *, ignore_unknown: bool = False, width: str | None = None
) -> Scored:
    """Score a file of requests, one JSON object a line, into a file of `{"scores": [...]}`, one a line in their order.

    Blank lines are skipped and have no scores. Requests are read, scored and written one at a time, so a file may be
    larger than memory. `width` is which of the bundle's, the widest if None. `out` is whole or absent: it is written
    beside its place and renamed.

    Raises:
        UserError: `out` is the file of requests or lies in the bundle, the bundle is broken, the file holds no request,
            or a line none that fits the bundle; it names the line.
    """
    _check_place(Path(bundle), requests, out)
    scorer = Scorer.load(bundle, ignore_unknown=ignore_unknown)
    if width is not None:
        scorer = scorer.at(width)  # one that is not there is said before any line is read
    num_requests = num_ads = 0
    with atomic_file(out) as file:
        for line, request in numbered_requests(requests):
            num_requests += 1
            try:
                scores_N = scorer.score_request(request)
            except UserError as error:
                raise UserError(f"{requests}, line {line}: {error}") from error
            num_ads += len(scores_N)
            file.write((json.dumps({"scores": scores_N.tolist()}) + "\n").encode())
    return Scored(num_requests, num_ads, scorer.counts)


def _check_place(bundle: Path, requests: Path, out: Path) -> None:
    place = out.resolve()
    if place == requests.resolve():
        raise UserError(f"{out}: is the file of requests; give the scores another place")
    if bundle.resolve() in place.parents:
        raise UserError(f"{out}: lies in the bundle, which it would break; give the scores another place")
