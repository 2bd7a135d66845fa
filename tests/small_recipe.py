"""A recipe whose whole job takes seconds: a synthetic log of a few thousand impressions, small towers."""

from pathlib import Path

RECIPE = """
name = "small"

[data]
synthetic = { rows = 3000, seed = 1, days = 4 }
split = { by = "column", column = "day" }
row_group_rows = 500

[columns]
label = "click"
group = "user_id"
oracle = "click_probability"
slices = ["device", "day"]

[features]
user_id = { side = "user" }
city = { side = "user" }
recent_ads = { side = "user", kind = "sequence", table = "ad_id", max_len = 4 }
ad_id = { side = "item" }
category_id = { side = "item" }
price = { side = "item", kind = "dense", transform = "log" }
device = { side = "context" }

[embedding]
dim = 4

[towers]
light = { hidden = [8] }
booster = { hidden = [16, 8], dropout = 0.1 }

[models.light]
objective = "pointwise"
tower = "light"

[models.booster]
objective = "pointwise"
tower = "booster"

[models.rocket]
objective = "rocket_launching"
light = "light"
booster = "booster"

[train]
epochs = 2
batch_size = 256
evaluations_per_epoch = 2

[export]
parity_rows = 500

[bench]
ads = 20
repeats = 200
"""


def write(folder: Path) -> Path:
    """The recipe as a file."""
    path = folder / "small.toml"
    path.write_text(RECIPE)
    return path
