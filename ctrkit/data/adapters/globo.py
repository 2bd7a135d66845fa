"""Globo.com news clicks of October 2017, with sampled negatives: the raw log has clicks only.

Raw files as Globo.com publishes them ("News Portal User Interactions"): ``clicks/clicks_hour_*.csv`` and
``articles_metadata.csv``. Each click becomes a slate of itself and ``negatives`` articles drawn from the ``window``
clicks before it, none of which that user ever clicked, in random order. An article is drawn as often as it was
clicked in the window, so popularity tells little between the rows of a slate. The first ``history_share`` of the clicks
makes no slates: it only feeds histories and negatives. The last tenth of the slates in time is the test part, the tenth
before it valid. The clicks (3 million) fit into memory; slates are written in chunks.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ctrkit.data.adapters.raw import PARTS, Ints, PartWriter, lists, lookup, preceding, raw_file, read_csv
from ctrkit.errors import UserError

RAW_FILES = ("clicks/clicks_hour_*.csv", "articles_metadata.csv")
ORIGIN = "the news portal user interactions, published by Globo.com"
RECENT_ITEMS = 10
CHUNK_SLATES = 1 << 16
MAX_DRAWS = 50
CONTEXT = {
    "click_environment": "environment",
    "click_deviceGroup": "device",
    "click_os": "os",
    "click_country": "country",
    "click_region": "region",
    "click_referrer_type": "referrer",
}
CLICK = {
    "user_id": pa.int32(),
    "click_article_id": pa.int32(),
    "click_timestamp": pa.int64(),
    **dict.fromkeys(CONTEXT, pa.int8()),
}
ARTICLE = {"article_id": pa.int64(), "created_at_ts": pa.int64()}

logger = logging.getLogger(__name__)


def convert(
    source: Path,
    target: Path,
    *,
    negatives: int = 4,
    window: int = 20_000,
    history_share: float = 0.45,
    seed: int = 0,
) -> None:
    """Write the flat log, ascending in time.

    Columns: slate_id (the click's number in time), user_id, timestamp (s), hour (UTC), environment, device, os,
    country, region, referrer, recent_items (the user's last 10 clicks before, newest first) · item_id, item_age_hours
    (at least 0; null without metadata) · click. Raises UserError for a missing file, a malformed line or options out
    of range.
    """
    if negatives < 1 or window < 1 or not 0 <= history_share < 1:
        raise UserError(
            f"globo: negatives={negatives}, window={window}, history_share={history_share}: "
            "needs negatives >= 1, window >= 1 and 0 <= history_share < 1"
        )
    articles = pa.concat_tables(read_csv(raw_file(source, RAW_FILES[1], origin=ORIGIN), ARTICLE, required=ARTICLE))
    clicks = _clicks(source)
    user, item = clicks["user_id"].to_numpy().astype(np.int64), clicks["click_article_id"].to_numpy().astype(np.int64)
    # The first click has none before it to draw from.
    slates = np.arange(max(int(len(user) * history_share), 1), len(user))
    rng = np.random.default_rng(seed)
    drawn = _negatives(rng, user, item, slates, negatives, window)
    if missing := int((drawn < 0).sum()):
        logger.warning("globo: %d negatives left out: their users clicked all that was drawn", missing)
    cuts = [0, len(slates) * 8 // 10, len(slates) * 9 // 10, len(slates)]
    with PartWriter(target, ORIGIN) as parts:
        for part, low, high in zip(PARTS, cuts[:-1], cuts[1:], strict=True):
            for begin in range(low, high, CHUNK_SLATES):
                chunk = slice(begin, min(begin + CHUNK_SLATES, high))
                parts.write(part, _slates(rng, clicks, user, item, articles, slates[chunk], drawn[chunk]))


def _clicks(source: Path) -> pa.Table:
    """All clicks in order of time."""
    paths = sorted(source.glob("**/clicks_hour_*.csv"))
    if not paths:
        raise UserError(f"{source / RAW_FILES[0]}: no such file; it is part of {ORIGIN}: put the official files there")
    tables = [table for path in paths for table in read_csv(path, CLICK, required=CLICK, progress=False)]
    clicks = pa.concat_tables(tables).combine_chunks()
    return clicks.take(pa.array(np.argsort(clicks["click_timestamp"].to_numpy(), kind="stable")))


def _negatives(rng: np.random.Generator, user: Ints, item: Ints, slates: Ints, number: int, window: int) -> Ints:
    """Items [slates, number], distinct in a slate and never clicked by its user; -1 where no draw was free in time."""
    width = int(item.max()) + 1
    clicked = np.unique(user * width + item)
    drawn = np.full((len(slates), number), -1)
    for column in range(number):
        open_rows = np.arange(len(slates))
        for _ in range(MAX_DRAWS):
            click = slates[open_rows]
            candidate = item[rng.integers(np.maximum(click - window, 0), click)]
            key = user[click] * width + candidate
            place = np.minimum(np.searchsorted(clicked, key), len(clicked) - 1)
            taken = (clicked[place] == key) | (drawn[open_rows] == candidate[:, None]).any(axis=1)
            drawn[open_rows[~taken], column] = candidate[~taken]
            open_rows = open_rows[taken]
            if not len(open_rows):
                break
    return drawn


def _slates(
    rng: np.random.Generator, clicks: pa.Table, user: Ints, item: Ints, articles: pa.Table, slates: Ints, drawn: Ints
) -> pa.Table:
    """The rows of these slates, each slate in random order."""
    shown = np.concatenate([item[slates][:, None], drawn], axis=1)
    order = np.argsort(rng.random(shown.shape), axis=1)
    shown = np.take_along_axis(shown, order, axis=1)
    place = np.nonzero(shown >= 0)
    row, shown_item = place[0], shown[place]
    time = clicks["click_timestamp"].to_numpy()[slates]
    by_user = np.argsort(user, kind="stable")
    offsets, recent = preceding(user[slates], slates, user[by_user], by_user, RECENT_ITEMS)
    recents = lists(offsets, pa.array(item[by_user][recent], pa.int32())).take(pa.array(row))
    context = clicks.take(pa.array(slates[row]))
    return pa.table(
        {
            "slate_id": pa.array(slates[row], pa.int32()),
            "user_id": context["user_id"],
            "timestamp": time[row] // 1000,
            "hour": pa.array(time[row] // 3_600_000 % 24, pa.int8()),
            **{name: context[raw] for raw, name in CONTEXT.items()},
            "recent_items": recents,
            "item_id": pa.array(shown_item, pa.int32()),
            "item_age_hours": _age_hours(articles, shown_item, time[row]),
            "click": (order[place] == 0).astype(np.int8),
        }
    )


def _age_hours(articles: pa.Table, item: Ints, time: Ints) -> pa.Array:
    row = lookup(item, articles["article_id"].to_numpy())
    age: npt.NDArray[np.float64] = (time - articles["created_at_ts"].to_numpy()[row]) / 3_600_000
    return pa.array(np.maximum(age, 0).round(2).astype(np.float32), mask=row < 0)
