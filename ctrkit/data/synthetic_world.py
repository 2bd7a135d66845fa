"""The world behind the synthetic log: its users, its ads, and the function that says what is clicked.

An ad is clicked with the probability

    p = sigmoid(b + quality[a] + taste[age, category] + position_bias[k]
                + AFFINITY * same(category, recent_categories)
                + PERSONAL * <personal[u], theme[category]>
                + PRICE    * price_code[age, daypart] * standardised log price
                + CROSS    * sum_m prod_{(f, i) in C_m} bit_i[value of f] / sqrt(M)
                + NET      * g(latent[age], latent[city], latent[category], latent[advertiser]))

where every value of the fields age, gender, city, device, daypart, category, advertiser and price band has BITS frozen
random signs, and ``C_m`` are M random sets of two to four fields, at least one of them the ad's, each with one of its
bits. A product of signs is a parity: a part of it tells next to nothing without the rest. Since every value is
frequent, what limits a model is how many such products its layers can form from the clicks there are, not its tables.
``g`` is a frozen random net of two tanh layers, and ``b`` is set so that the mean probability is the click rate asked
for. All of them are drawn from the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_SLATE = 10
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
GENDERS = ("female", "male", "unknown")
DEVICES = ("phone", "desktop", "tablet")
CITIES, CATEGORIES, ADVERTISERS, DAYPARTS, PRICE_BANDS = 20, 30, 40, 4, 5
CARDINALITY = {
    "age": len(AGE_BANDS),
    "gender": len(GENDERS),
    "device": len(DEVICES),
    "city": CITIES,
    "category": CATEGORIES,
    "advertiser": ADVERTISERS,
    "daypart": DAYPARTS,
    "price_band": PRICE_BANDS,
}
AD_FIELDS = ("category", "advertiser", "price_band")
CROSSES, DEGREES, BITS = 32, (2, 3, 4, 4), 3
AFFINITY, PERSONAL, PRICE, CROSS, NET = 0.8, 0.3, 0.2, 1.4, 0.4
LATENT, HIDDEN = 4, 32


@dataclass(frozen=True)
class World:
    """Everything that is drawn once from the seed; ``fields`` maps a field to its value per user [U] or per ad [A]."""

    user_fields: dict[str, Ints]
    ad_fields: dict[str, Ints]
    activity: Floats
    campaign: Ints
    birth: Ints
    price: Floats
    quality: Floats
    personal: Floats
    theme: Floats
    price_code: Floats
    bits: dict[str, Floats]
    crosses: tuple[dict[str, int], ...]
    latent: dict[str, Floats]
    layers: tuple[Floats, Floats, Floats]
    position_bias: Floats


@dataclass(frozen=True)
class Impressions:
    """A chunk of impressions: request number, user, ad, hour, device, position (from 1), second of day, each [B]."""

    request: Ints
    user: Ints
    ad: Ints
    hour: Ints
    device: Ints
    position: Ints
    second: Ints


def draw_world(rng: np.random.Generator, users: int, ads: int, days: int) -> World:
    """Draw users, ads (born on a day from 0 to ``days`` - 1) and the click function."""
    campaigns = max(ads // 8, 1)
    campaign_advertiser = rng.integers(ADVERTISERS, size=campaigns)
    advertiser_categories = rng.integers(CATEGORIES, size=(ADVERTISERS, 3))
    campaign_category = advertiser_categories[campaign_advertiser, rng.integers(3, size=campaigns)]
    campaign = rng.integers(campaigns, size=ads)
    category = campaign_category[campaign]
    log_price = rng.normal(0.0, 0.6, CATEGORIES)[category] + rng.normal(0.0, 0.6, ads)
    price_rank = np.argsort(np.argsort(log_price))
    latent = {name: rng.normal(size=(CARDINALITY[name], LATENT)) for name in ("age", "city", "category", "advertiser")}
    return World(
        user_fields={name: rng.integers(CARDINALITY[name], size=users) for name in ("age", "gender", "city")},
        ad_fields={
            "category": category,
            "advertiser": campaign_advertiser[campaign],
            "price_band": price_rank * PRICE_BANDS // ads,
        },
        activity=np.cumsum(rng.gamma(2.0, size=users)),
        campaign=campaign,
        birth=np.where(rng.random(ads) < 0.6, 0, rng.integers(0, days, size=ads)),
        price=np.exp(3.0 + log_price).round(2).astype(np.float64),
        quality=rng.normal(0.0, 0.3, ads),
        personal=rng.normal(size=(users, LATENT)),
        theme=rng.normal(size=(CATEGORIES, LATENT)) / np.sqrt(LATENT),
        price_code=rng.choice([-1.0, 1.0], size=(len(AGE_BANDS), DAYPARTS)),
        bits={name: _signs(rng, count) for name, count in CARDINALITY.items()},
        crosses=tuple(_cross(rng, DEGREES[number % len(DEGREES)]) for number in range(CROSSES)),
        latent=latent,
        layers=(
            rng.normal(size=(LATENT * len(latent), HIDDEN)) * 1.5 / np.sqrt(LATENT * len(latent)),
            rng.normal(size=(HIDDEN, HIDDEN)) * 2.0 / np.sqrt(HIDDEN),
            rng.normal(size=HIDDEN) / np.sqrt(HIDDEN),
        ),
        position_bias=-0.35 * np.log(np.arange(1, MAX_SLATE + 1)),
    )


def _signs(rng: np.random.Generator, count: int) -> Floats:
    """Balanced random signs [count, BITS]."""
    return np.stack([rng.permutation(np.resize([-1.0, 1.0], count)) for _ in range(BITS)], axis=1)


def _cross(rng: np.random.Generator, degree: int) -> dict[str, int]:
    """A random set of fields, at least one of them the ad's, each with one of its bits."""
    first = str(rng.choice(AD_FIELDS))
    others = rng.choice([name for name in CARDINALITY if name != first], size=degree - 1, replace=False)
    return {str(name): int(rng.integers(BITS)) for name in (first, *others)}


def logit(world: World, taste: Floats, history: Ints, shown: Impressions) -> Floats:
    """Logit [B] of the click probability, short of the bias: the module's formula."""
    value = {name: column[shown.user] for name, column in world.user_fields.items()}
    value |= {name: column[shown.ad] for name, column in world.ad_fields.items()}
    value |= {"daypart": shown.hour // 6, "device": shown.device}
    category = value["category"]
    recent = np.where(history >= 0, world.ad_fields["category"][history], -1)[shown.user]
    score = world.quality[shown.ad] + taste[value["age"], category] + world.position_bias[shown.position - 1]
    score += AFFINITY * (recent == category[:, None]).any(axis=1)
    score += PERSONAL * (world.personal[shown.user] * world.theme[category]).sum(axis=1)
    log_price = np.log(world.price)
    score += (
        PRICE
        * world.price_code[value["age"], value["daypart"]]
        * ((log_price - log_price.mean()) / log_price.std())[shown.ad]
    )
    for cross in world.crosses:
        product = np.full(len(score), CROSS / np.sqrt(len(world.crosses)))
        for name, bit in cross.items():
            product *= world.bits[name][value[name], bit]
        score += product
    hidden = np.concatenate([table[value[name]] for name, table in world.latent.items()], axis=1)
    first, second, last = world.layers
    return score + NET * (np.tanh(np.tanh(hidden @ first) @ second) @ last)
