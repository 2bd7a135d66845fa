"""Counting, for every group, the pairs of a click and a non-click that the scores put in the right order.

The one algorithm behind AUC and GAUC. A row becomes one 64-bit key, (group, score's code, label) from the high bits to
the low; one sort lines the rows up and one pass over the sorted keys counts, in integers, so nothing is rounded.

The score's code is monotone. Where it is also one-to-one (float32 scores always; float64 where enough bits are left)
the keys are exact by construction. Otherwise it is a grid of as many bits as fit, which may put two scores in one
cell; that matters only where a cell holds both labels of one group, and then it is found out: the scores are sorted
to see whether any two share a cell, and if so their ranks take the grid's place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrkit.errors import UserError
from ctrkit.metrics.grouping import Grouping
from ctrkit.metrics.inputs import BoolArray, FloatArray, chunks

_KEY_BITS = 63  # what the label leaves of 64 for group and score
_SCORE_BITS = 62  # enough for any float64 in [0, 1]
_GRID_BITS = 52  # below 2**52 every integer is a float64, so a cell is where it seems to be


@dataclass(frozen=True)
class PairCounts:
    """What AUC needs of every group, [groups] each.

    key: the group's. rows, clicks: int64. twice_won: int64, twice the pairs (click, non-click) in the right order, a
    tie counting as half a pair.
    """

    key: NDArray[Any]
    rows: NDArray[np.int64]
    clicks: NDArray[np.int64]
    twice_won: NDArray[np.int64]

    @property
    def auc(self) -> NDArray[np.float64]:
        """twice_won / (2 clicks non-clicks), rounded once; nan for groups of one class."""
        pairs = 2 * self.clicks * (self.rows - self.clicks)
        auc: NDArray[np.float64] = np.full(len(pairs), np.nan)
        np.divide(self.twice_won, pairs, out=auc, where=pairs > 0)
        return auc

    @property
    def weight(self) -> NDArray[np.int64]:
        """Impressions."""
        return self.rows

    @property
    def click_weight(self) -> NDArray[np.int64]:
        """Clicks."""
        return self.clicks


@dataclass(frozen=True)
class ScoreCode:
    """A monotone code of scores in [0, 2**bits): the place among all floats, a cell of an even grid, or the rank.

    `exact` says that two different scores never share a code. low: the lowest score; scale: cells a unit of score, for
    a grid; ranks: [rows], for ranks.
    """

    scores: FloatArray
    bits: int
    exact: bool
    low: float
    scale: float = 0.0
    ranks: NDArray[np.int64] | None = None

    def __call__(self, part: slice) -> NDArray[np.uint64]:
        """The codes of those rows."""
        if self.ranks is not None:
            return self.ranks[part].astype(np.uint64)
        if not self.exact:
            return grid_cell(self.scores[part], self.low, self.scale, self.bits)
        lowest = int(place(np.full(1, self.low, dtype=self.scores.dtype))[0])
        codes = place(self.scores[part]).astype(np.uint64)
        codes -= np.uint64(lowest % 2**64)
        return codes


def place(scores: NDArray[Any]) -> NDArray[Any]:
    """The scores' places among all floats of their type, counted from 0.0: integers of the same width [rows]."""
    integer = np.int32 if scores.dtype == np.float32 else np.int64
    bits: NDArray[Any] = (scores + 0).view(integer)  # + 0, since -0.0 is 0.0
    bits ^= (bits >> (8 * bits.itemsize - 1)) & np.iinfo(integer).max  # a negative float's bits grow downwards
    return bits


def grid_cell(scores: NDArray[Any], low: float, scale: float, bits: int) -> NDArray[np.uint64]:
    """The cells of an even grid. Each step rounds monotonically, so a higher score never gets a lower cell."""
    return np.minimum((scores - low) * scale, 2.0**bits - 1).astype(np.uint64)


def place_code(scores: FloatArray) -> ScoreCode:
    """The exact code by places, however many bits it needs."""
    if not scores.size:
        return ScoreCode(scores, 0, exact=True, low=0.0)
    ends = np.array([scores.min(), scores.max()], dtype=scores.dtype)
    lowest, highest = (int(end) for end in place(ends))
    return ScoreCode(scores, (highest - lowest).bit_length(), exact=True, low=float(ends[0]))


def grid_code(scores: FloatArray, bits: int) -> ScoreCode | None:
    """The code by an even grid of 2**bits cells; None if the scores lie too near or too far apart to divide by."""
    bits = min(bits, _GRID_BITS)
    low, high = np.float64(scores.min()), np.float64(scores.max())
    with np.errstate(over="ignore"):
        scale = float(2.0**bits / (high - low))
    return ScoreCode(scores, bits, exact=False, low=float(low), scale=scale) if 0.0 < scale < np.inf else None


def rank_code(scores: FloatArray) -> ScoreCode:
    """The exact code of fewest bits; it costs an argsort."""
    ranks = dense_ranks(scores)
    return ScoreCode(scores, int(ranks.max()).bit_length(), exact=True, low=0.0, ranks=ranks)


def dense_ranks(scores: FloatArray) -> NDArray[np.int64]:
    """Rank [rows] of every score among the distinct scores, from 0."""
    order = np.argsort(scores)
    steps = np.zeros(len(scores), dtype=np.int64)
    for part in chunks(len(scores) - 1):
        following = slice(part.start + 1, part.stop + 1)
        steps[following] = scores[order[following]] != scores[order[part]]
    np.cumsum(steps, out=steps)
    ranks = np.empty_like(steps)
    ranks[order] = steps
    return ranks


def count_pairs(clicks: BoolArray, scores: FloatArray, groups: Grouping) -> PairCounts:
    """Pair counts of every group, exactly, whatever the order of the rows.

    clicks [rows] bool, scores [rows] finite. Memory: 8 bytes a row for the keys and about 100 bytes a group; 24 bytes a
    row more in the rare case that ranks are needed. Raises UserError if group and rank do not fit in 63 bits.
    """
    code = place_code(scores)
    if code.bits + groups.bits > _KEY_BITS:
        groups = groups.renumbered()
    bits = min(_SCORE_BITS, _KEY_BITS - groups.bits)
    if code.bits > bits:
        code = grid_code(scores, bits) or rank_code(scores)
    counts, tied = _count(pack_keys(groups, code, clicks), code.bits, groups)
    if tied and not code.exact and not _one_to_one(code):
        code = rank_code(scores)
        counts, tied = _count(pack_keys(groups, code, clicks), code.bits, groups)
    return counts


def exact_code(groups: Grouping, scores: FloatArray) -> tuple[Grouping, ScoreCode]:
    """The groups, renumbered if need be, and an exact code of the scores, that fit into one key."""
    code = place_code(scores)
    if code.bits + groups.bits > _KEY_BITS:
        groups = groups.renumbered()
    fits = code.bits <= min(_SCORE_BITS, _KEY_BITS - groups.bits)
    return groups, code if fits else rank_code(scores)


def pack_keys(groups: Grouping, code: ScoreCode, clicks: BoolArray) -> NDArray[np.uint64]:
    """One integer a row [rows], with the group in the high bits, then the score's code, then the label."""
    if code.bits + groups.bits > _KEY_BITS:
        raise UserError(
            f"groups need {groups.bits} bits and scores {code.bits}; {_KEY_BITS} fit: split the log by group"
        )
    keys = np.empty(len(clicks), dtype=np.uint64)
    shift = np.uint64(code.bits + 1)
    for part in chunks(len(clicks)):
        key = groups.code(part)
        key <<= shift
        score = code(part)
        score <<= np.uint64(1)
        key |= score
        np.bitwise_or(key, clicks[part], out=keys[part])
    return keys


def _one_to_one(code: ScoreCode) -> bool:
    """Whether the grid put no two different scores in one cell."""
    ordered = np.sort(code.scores)
    for part in chunks(len(ordered)):
        piece = ordered[part.start : part.stop + 1]
        last_of_value = np.flatnonzero(piece[1:] != piece[:-1])
        cells, following = (
            grid_cell(piece[at], code.low, code.scale, code.bits) for at in (last_of_value, last_of_value + 1)
        )
        if np.any(cells == following):
            return False
    return True


def _count(keys: NDArray[np.uint64], score_bits: int, groups: Grouping) -> tuple[PairCounts, bool]:
    """Counts from the keys, which are sorted in place, and whether any (group, score) holds both labels.

    With p the place of the j-th click (from 0) in a group that starts at s, p - s - j non-clicks come before it. Summed
    over clicks: sum(p) - clicks s - clicks (clicks - 1) / 2, which counts a tied pair as won, since label is the lowest
    bit. So twice_won = 2 sum(p - s) - clicks (clicks - 1) - tied pairs.
    """
    keys.sort()
    parts = [_count_part(keys, part, score_bits) for part in chunks(len(keys))]
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return PairCounts(groups.keys(none.astype(np.uint64)), none, none, none), False
    starts, new, clicks, places, tied = (np.concatenate(column) for column in zip(*parts, strict=True))
    first = np.flatnonzero(new)  # the segments that open a group; those after it, up to the next, continue it
    starts = starts[first]
    clicks, places, tied = (np.add.reduceat(column, first) for column in (clicks, places, tied))
    won = 2 * (places - clicks * starts) - clicks * (clicks - 1) - tied
    key = groups.keys(keys[starts] >> np.uint64(score_bits + 1))
    return PairCounts(key, np.diff(starts, append=len(keys)), clicks, won), bool(tied.any())


Segments = tuple[NDArray[np.int64], BoolArray, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _count_part(keys: NDArray[np.uint64], part: slice, score_bits: int) -> Segments:
    """The groups' segments in these rows: start, whether a group starts there, clicks, sum of places, tied pairs.

    The first segment belongs to the group that was open before; it is empty if these rows start with a new one.
    """
    here = keys[part]
    change = np.empty_like(here)
    change[0] = here[0] ^ keys[part.start - 1] if part.start else 2**63
    np.bitwise_xor(here[1:], here[:-1], out=change[1:])
    opens = np.flatnonzero(change >= np.uint64(2 ** (score_bits + 1)))
    starts = np.concatenate([[0], opens])
    new = np.ones(len(starts), dtype=np.bool_)
    new[0] = False
    clicked = np.flatnonzero((here.astype(np.uint8) & np.uint8(1)).view(np.bool_))
    clicks, places = _segment_sums(clicked, clicked, starts)
    mixed = np.flatnonzero(change == np.uint64(1))  # the label changes, group and score do not: a tie of both labels
    tied = _tied_pairs(keys, part, change, mixed)
    return starts + part.start, new, clicks, places + clicks * part.start, _segment_sums(mixed, tied, starts)[1]


def _tied_pairs(
    keys: NDArray[np.uint64], part: slice, change: NDArray[np.uint64], mixed: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pairs (click, non-click) in every tie [ties], given the row in which its clicks begin."""
    here = keys[part]
    if len(mixed) * 64 < len(here):  # few: look their ends up
        middle = mixed + part.start
        start = np.searchsorted(keys, here[mixed] - np.uint64(1), side="left")
        return np.asarray((middle - start) * (np.searchsorted(keys, here[mixed], side="right") - middle))
    runs = np.flatnonzero(change)  # where equal keys begin; the first and the last run may reach beyond these rows
    before = np.searchsorted(keys, keys[part.start - 1], side="left") if part.start else 0
    length = np.diff(np.concatenate([[before], runs + part.start, [np.searchsorted(keys, here[-1], side="right")]]))
    clicks_run = np.searchsorted(runs, mixed) + 1
    return np.asarray(length[clicks_run - 1] * length[clicks_run])


def _segment_sums(
    at: NDArray[np.int64], values: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count and sum of `values`, which lie at the ascending places `at`, in the segments that begin at `starts`."""
    if not at.size:
        return np.zeros_like(starts), np.zeros_like(starts)
    cuts = np.append(np.searchsorted(at, starts), len(at))
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(cuts), np.diff(total[cuts])
