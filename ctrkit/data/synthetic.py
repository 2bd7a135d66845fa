"""A seeded display-ad click log whose click probabilities are known.

Requests arrive day by day. A request shows one user a slate of 5 to 10 ads at one time; the ads are drawn by
popularity among those that live that day, an old ranker orders them by quality and noise, and each ad is clicked with
a probability that is a fixed function of user, ad, context, history and position, with high-order crosses
(``synthetic_world`` has its formula).

Days drift: popularity and ``taste`` walk at random, and ads are born every day, so the last day shows ads never seen
before, of campaigns, categories and advertisers that were. Histories are the simulated clicks of earlier days (three
days before the first are simulated and not written).

``click`` is a Bernoulli draw of the column ``click_probability``, so scoring with that column gives the Bayes-optimal
log loss, AUC and GAUC of the log. ``position`` is known only after ranking: a serving model cannot use it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ctrkit.data.synthetic_world import (
    AGE_BANDS,
    CATEGORIES,
    CITIES,
    DEVICES,
    GENDERS,
    MAX_SLATE,
    Floats,
    Impressions,
    Ints,
    World,
    draw_world,
    logit,
)
from ctrkit.errors import UserError

FIRST_DAY = date(2025, 3, 3)
CHUNK_ROWS = 1 << 18
ROW_GROUP_ROWS = 1 << 16
WARM_UP_DAYS = 3
MIN_SLATE = 5
HISTORY = 10


@dataclass
class _State:
    """What changes by day: log popularity [A], taste [age, category], each user's clicks (newest first, -1 empty)."""

    popularity: Floats
    taste: Floats
    history: Ints


def generate(
    directory: Path,
    *,
    rows: int,
    seed: int,
    days: int = 8,
    users: int | None = None,
    ads: int | None = None,
    click_rate: float = 0.08,
) -> None:
    """Write a log of ``rows`` impressions as ``directory/day=YYYY-MM-DD/part-*.parquet``, ascending in time.

    Memory does not grow with ``rows``, only with users and ads (by default one user to 150 rows and one ad to 400, at
    most a million each). The directory appears whole or not at all. Raises UserError if it exists and is not empty or a
    number makes no sense.
    """
    if rows < days or days < 2 or not 0.0 < click_rate < 1.0:
        raise UserError(
            f"synthetic log: rows={rows}, days={days}, click_rate={click_rate}: "
            "needs days >= 2, rows >= days and 0 < click_rate < 1"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already and is not empty; remove it or name another directory")
    users = users or min(max(rows // 150, 50), 1_000_000)
    ads = ads or min(max(rows // 400, 200), 1_000_000)
    partial = directory.with_name(f".{directory.name.lstrip('.')}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tqdm(total=rows, unit=" rows", desc="synthetic log", disable=None) as bar:
            for path, table in _tables(rows, seed, days, users, ads, click_rate):
                (partial / path).parent.mkdir(exist_ok=True)
                pq.write_table(table, partial / path, row_group_size=ROW_GROUP_ROWS, compression="zstd")
                bar.update(table.num_rows)
        partial.replace(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _tables(
    rows: int, seed: int, days: int, users: int, ads: int, click_rate: float
) -> Iterator[tuple[Path, pa.Table]]:
    """Simulate day by day; yield each chunk with the path it goes to."""
    world = draw_world(np.random.default_rng([seed, 0]), users, ads, days)
    state = _State(
        np.log(np.random.default_rng([seed, 1]).pareto(1.5, ads) + 0.2),
        np.zeros((len(AGE_BANDS), CATEGORIES)),
        np.full((users, HISTORY), -1),
    )
    bias, request = 0.0, 0
    for day in range(-WARM_UP_DAYS, days):
        rng = np.random.default_rng([seed, 2, day + WARM_UP_DAYS])
        state.popularity += rng.normal(0.0, 0.3, ads)
        state.taste += rng.normal(0.0, 0.08, state.taste.shape)
        history = state.history  # _push makes a new one: today's clicks show tomorrow
        day_rows = (day + 1) * rows // days - day * rows // days
        day_start = FIRST_DAY + timedelta(days=day)
        for part, (begin, end) in enumerate(_chunks(day_rows)):
            shown = _requests(rng, world, state, max(day, 0), begin, end, day_rows, request)
            score = logit(world, state.taste, history, shown)
            if day < 0:  # settled by the time the log begins, when users have histories
                bias = _bias(score, click_rate)
            probability = 1.0 / (1.0 + np.exp(-(score + bias)))
            click = rng.random(len(score)) < probability
            state.history = _push(state.history, shown.user[click], shown.ad[click])
            request = int(shown.request[-1]) + 1
            if day >= 0:
                yield (
                    Path(f"day={day_start}/part-{part:05d}.parquet"),
                    _table(world, history, shown, day_start, probability, click),
                )


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, rows, CHUNK_ROWS):
        yield begin, min(begin + CHUNK_ROWS, rows)


def _slates(rng: np.random.Generator, world: World, popularity: Floats, day: int, slates: int) -> Ints:
    """Ads by position [slates, MAX_SLATE]: distinct in a slate, which is filled up with -1."""
    size = rng.integers(MIN_SLATE, MAX_SLATE + 1, size=slates)
    live = np.flatnonzero(world.birth <= day)
    weight = np.cumsum(np.exp(popularity[live]))
    drawn = live[np.searchsorted(weight, rng.random((slates, MAX_SLATE)) * weight[-1])]
    drawn.sort(axis=1)
    rank = world.quality[drawn] + rng.gumbel(size=drawn.shape)
    rank[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = -np.inf  # a second draw of the same ad goes last and is dropped
    order = np.argsort(-rank, axis=1)
    drawn, rank = np.take_along_axis(drawn, order, 1), np.take_along_axis(rank, order, 1)
    return np.where((np.arange(MAX_SLATE) < size[:, None]) & np.isfinite(rank), drawn, -1)


def _requests(
    rng: np.random.Generator, world: World, state: _State, day: int, begin: int, end: int, day_rows: int, first: int
) -> Impressions:
    """Draw the requests of rows ``begin`` to ``end`` of a day, in order of time; the last slate is cut at ``end``."""
    rows = end - begin
    ads = np.empty((0, MAX_SLATE), dtype=np.int64)
    while (missing := rows - int((ads >= 0).sum())) > 0:
        ads = np.concatenate([ads, _slates(rng, world, state.popularity, day, missing // MIN_SLATE + 1)])
    request, position = (index[:rows] for index in np.nonzero(ads >= 0))
    requests = int(request[-1]) + 1
    user = np.searchsorted(world.activity, rng.random(requests) * world.activity[-1])
    # The day's requests come in order of time: this chunk covers its share of the day, denser in the evening.
    share = np.sort(rng.random(requests)) * (end - begin) / day_rows + begin / day_rows
    second = (86_400 * share**0.7).astype(np.int64)
    device = np.where(rng.random(requests) < 0.6, 0, rng.integers(len(DEVICES), size=requests))
    return Impressions(
        request + first,
        user[request],
        ads[request, position],
        second[request] // 3600,
        device[request],
        position + 1,
        second[request],
    )


def _bias(logit: Floats, click_rate: float) -> float:
    """The bias under which the mean probability of these impressions is ``click_rate``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        if np.mean(1.0 / (1.0 + np.exp(-(logit + middle)))) < click_rate:
            low = middle
        else:
            high = middle
    return low


def _push(history: Ints, user: Ints, ad: Ints) -> Ints:
    """Put clicks (in order of time) before each user's history [U, HISTORY] and cut it to length."""
    order = np.argsort(user[::-1], kind="stable")
    user, ad = user[::-1][order], ad[::-1][order]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    who, ads, slot = (column[place < HISTORY] for column in (user, ad, place))
    count = np.bincount(who, minlength=len(history))[:, None]
    shifted = np.take_along_axis(history, np.maximum(np.arange(HISTORY) - count, 0), axis=1)
    shifted[who, slot] = ads
    return shifted


def _table(
    world: World, history: Ints, shown: Impressions, day: date, probability: Floats, click: npt.NDArray[np.bool_]
) -> pa.Table:
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    user = world.user_fields
    recent = history[shown.user]
    filled = recent >= 0
    offsets = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    recent = recent[filled]
    names = pa.array([f"u{number:06d}" for number in range(len(history))])
    return pa.table(
        {
            "request_id": shown.request,
            "timestamp": midnight + shown.second,
            "user_id": names.take(pa.array(shown.user)),
            "age_band": pa.array(AGE_BANDS).take(pa.array(user["age"][shown.user])),
            "gender": pa.array(GENDERS).take(pa.array(user["gender"][shown.user])),
            "city": pa.array([f"city{number:02d}" for number in range(CITIES)]).take(
                pa.array(user["city"][shown.user])
            ),
            "recent_ads": pa.ListArray.from_arrays(offsets, recent + 1),
            "recent_categories": pa.ListArray.from_arrays(offsets, world.ad_fields["category"][recent] + 1),
            "ad_id": shown.ad + 1,
            "campaign_id": world.campaign[shown.ad] + 1,
            "category_id": world.ad_fields["category"][shown.ad] + 1,
            "advertiser_id": world.ad_fields["advertiser"][shown.ad] + 1,
            "price": world.price[shown.ad],
            "hour": shown.hour,
            "device": pa.array(DEVICES).take(pa.array(shown.device)),
            "position": shown.position,
            "click_probability": probability,
            "click": click.astype(np.int8),
        }
    )
