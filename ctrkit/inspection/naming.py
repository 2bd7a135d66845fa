"""What the name of a column tells about it: words of the field by the side they belong to."""

import re

from ctrkit.schema import Side

_HISTORY = "recent hist history past last viewed clicked behavior behaviour sequence seq"
_USER = (
    "user uid member visitor customer cookie gender sex age city country region zip postcode occupation job income "
    "education marital household loyalty pvalue shopping"
)
_ITEM = (
    "item iid ad ads adgroup creative campaign advertiser brand cate cat category genre price product sku movie title "
    "year article news hotel offer material publisher author seller shop merchant goods"
)
_CONTEXT = (
    "position pos rank slot hour minute weekday dow day month device platform os browser app site page url domain "
    "referrer referer network connection environment channel banner scene query filter language locale ip pid"
)
_WORDS: dict[str, Side] = {
    **dict.fromkeys(_CONTEXT.split(), "context"),
    **dict.fromkeys(_ITEM.split(), "item"),
    **dict.fromkeys(_USER.split(), "user"),
}
_POSITION = {"position", "pos", "slot"}
_TIME = {"timestamp", "time", "ts", "datetime"}
_TIME_UNIT = {"ms", "us", "ns", "milli", "millis", "utc", "unix", "epoch"}
_DURATION = {"dwell", "watch", "stay", "spent", "elapsed"}
_OTHER_TIME = {"birth", "birthday", "release", "publish", "published", "signup", "registration", "registered", "join"}
_OTHER_TIME |= {"joined", "launch", "start", "end", "expiry", "update", "updated", "modified"}
_WEIGHT = {"w", "weight", "ipw", "propensity"}
_OF_WEIGHT = {"sample", "row", "importance", "impression", "example", "instance"}
_DAY = {"day", "date", "dt", "ds"}
_REQUEST = {"request", "impression", "slate", "session", "event", "row", "auction", "bid", "log", "transaction"}
_NUMBER = {"price", "cost", "amount", "duration", "count", "num", "number", "hour", "minute", "second", "distance"}
_NUMBER |= {"ratio", "rate", "length", "size"}
_SCORE = {"probability", "prob", "pctr", "score", "prediction", "predicted"}


def words(name: str) -> list[str]:
    """Words of a column's name, in lower case and the singular: `recentItems` and `recent_items` are recent, item."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    return [_singular(part.lower()) for part in parts]


def _singular(word: str) -> str:
    if word == "news":
        return word
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "ds", "ts")) else word


def side_of(name: str) -> Side | None:
    """The side that a name tells: a history is the user's; else the first word that belongs to a side decides."""
    parts = words(name)
    if set(parts) & set(_HISTORY.split()):
        return "user"
    if set(parts) & _POSITION:
        return "context"
    return next((_WORDS[part] for part in parts if part in _WORDS), None)


def is_position(name: str) -> bool:
    """Whether it is the place on the page, which is known only after ranking."""
    return bool(set(words(name)) & _POSITION)


def is_time(name: str) -> bool:
    """Whether it is the time of the impression: `ts`, `event_time`, `time_ms`; how long something took is none."""
    parts = words(name)
    while len(parts) > 1 and parts[-1] in _TIME_UNIT:
        parts = parts[:-1]
    return bool(parts) and (parts[-1] in _TIME or parts[0] == "timestamp") and not is_duration(name)


def is_duration(name: str) -> bool:
    """Whether it is how long a person looked, which nobody knows before."""
    return bool(set(words(name)) & _DURATION)


def is_other_time(name: str) -> bool:
    """Whether it is a time or day in the life of a user or an ad: a birth, a release."""
    return bool(set(words(name)) & _OTHER_TIME)


def is_weight(name: str) -> bool:
    """Whether it says how much an impression counts; of other words than these, it may be that of a parcel."""
    parts = set(words(name))
    return bool(parts & _WEIGHT) and parts <= _WEIGHT | _OF_WEIGHT


def is_day(name: str) -> bool:
    """Whether it is the day of the impression."""
    return words(name)[-1:] != [] and words(name)[-1] in _DAY


def is_request(name: str) -> bool:
    """Whether it numbers requests, sessions or rows: ids that never come back."""
    return bool(set(words(name)) & _REQUEST)


def is_number(name: str) -> bool:
    """Whether integers of that name are amounts, not ids."""
    return bool(set(words(name)) & _NUMBER)


def is_score(name: str) -> bool:
    """Whether it is what some model, or the truth, says about the click."""
    return bool(set(words(name)) & _SCORE)


def is_id(name: str) -> bool:
    """Whether it says that it is an id."""
    parts = words(name)
    return bool(parts) and parts[-1] in ("id", "uid", "iid", "key", "code")
