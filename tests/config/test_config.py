"""Recipes: what they say comes out, what they cannot mean is said, with the key and the nearest valid one."""

from pathlib import Path
from typing import Any

import pytest

from ctrkit.config.models import PointwiseConfig, RocketLaunchingConfig
from ctrkit.config.recipe import Recipe, as_dict, load_recipe
from ctrkit.errors import UserError
from ctrkit.schema import DenseFeature, SequenceFeature

RECIPE = """
name = "small"

[data]
path = "log"
split = { by = "column", column = "day", valid = 1, test = ["2024-05-08"] }

[columns]
label = "click"
group = "user_id"

[features]
user_id = { side = "user" }
recent = { side = "user", kind = "sequence", table = "item", max_len = 5 }
item = { side = "item", min_count = 3 }
price = { side = "item", kind = "dense", transform = "log" }

[embedding]
dim = 8
dims = { item = 12 }

[towers]
light = { hidden = [8], dropout = 0.1 }
booster = { hidden = [32, 16], batch_norm = true }

[models.light]
objective = "pointwise"
tower = "light"
train = { epochs = 7, lr = 0.01 }

[models.rocket]
objective = "rocket_launching"
light = "light"
booster = "booster"
hint = { weight = 0.5 }
route = "paper"

[train]
epochs = 3
batch_size = 64
lr = 0.5
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    return file


def test_what_a_recipe_says(path: Path) -> None:
    recipe = load_recipe(path)
    schema = recipe.schema_()
    assert (schema.label, schema.group, schema.time) == ("click", "user_id", None)
    assert [f.name for f in schema.features] == ["user_id", "recent", "item", "price"]
    recent, price = recipe.features["recent"], recipe.features["price"]
    assert isinstance(recent, SequenceFeature)
    assert (recent.table, recent.max_len, recent.pooling) == ("item", 5, "mean")
    assert isinstance(price, DenseFeature)
    assert price.transform == "log"
    rocket = recipe.models["rocket"]
    assert isinstance(rocket, RocketLaunchingConfig)
    assert (rocket.light, rocket.booster, rocket.hint.weight, rocket.route) == ("light", "booster", 0.5, "paper")
    assert recipe.towers["booster"].batch_norm is True
    assert recipe.towers["light"].batch_norm is False
    assert recipe.export_model == "rocket"


def test_a_model_overrides_the_training_keys_that_it_names_and_no_others(path: Path) -> None:
    recipe = load_recipe(path)
    light, rocket = recipe.train_config("light"), recipe.train_config("rocket")
    assert (light.epochs, light.lr, light.batch_size) == (7, 0.01, 64)
    assert (rocket.epochs, rocket.lr, rocket.batch_size) == (3, 0.5, 64)


def test_a_model_can_override_a_key_with_its_default(path: Path) -> None:
    # the default of lr is 1e-3: naming it counts although it changes nothing by itself
    recipe = load_recipe(path, ["models.light.train.lr=0.001"])
    assert recipe.train_config("light").lr == 0.001


def test_what_is_kept_of_a_recipe_says_the_same(path: Path) -> None:
    recipe = load_recipe(path)
    content = as_dict(recipe)
    assert content["models"]["light"]["train"]["epochs"] == 7
    assert content["models"]["rocket"]["train"]["epochs"] == 3
    again = Recipe.model_validate(content)
    assert as_dict(again) == content
    assert again.schema_() == recipe.schema_()
    assert all(again.train_config(model) == recipe.train_config(model) for model in recipe.models)


# --- --set


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=9", "train.epochs", 9),
        ("train.lr=1", "train.lr", 1.0),
        ("train.table_lr=1e-2", "train.table_lr", 0.01),
        ("train.table_optimizer=adagrad", "train.table_optimizer", "adagrad"),
        ('train.table_optimizer="adagrad"', "train.table_optimizer", "adagrad"),
        ("train.tensorboard=true", "train.tensorboard", True),
        ("towers.booster.batch_norm=false", "towers.booster.batch_norm", False),
        ("towers.light.hidden=[16, 4]", "towers.light.hidden", [16, 4]),
        ("towers.light.hidden=[]", "towers.light.hidden", []),
        ("models.rocket.hint.weight=2", "models.rocket.hint.weight", 2.0),
        ("models.rocket.train.epochs=1", "models.rocket.train.epochs", 1),
        ("data.path=../with spaces/a=b", "data.path", "../with spaces/a=b"),
        ("data.path=s3://bucket/log", "data.path", "s3://bucket/log"),
        ("bench.ads=17", "bench.ads", 17),
        (" train.epochs =9", "train.epochs", 9),
    ],
)
def test_overrides(path: Path, override: str, key: str, value: object) -> None:
    found: Any = load_recipe(path, [override])
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ('features."a.b".side=item', "a.b"),
        ("features.'a.b'.side=item", "a.b"),
        ('features."a=b" . side = "item"', "a=b"),
        (r'features."say \"a\"".side=item', 'say "a"'),
        ("features.prix €.side=item", "prix €"),
        ("features.it's.side=item", "it's"),
    ],
)
def test_an_override_names_any_key_as_toml_does(path: Path, override: str, name: str) -> None:
    recipe = load_recipe(path, [override])
    assert recipe.features[name].side == "item"
    assert len(recipe.features) == 5


def test_a_value_of_several_lines_is_kept_whole(path: Path) -> None:
    assert load_recipe(path, ["towers.light.hidden=[16,\n  4]"]).towers["light"].hidden == [16, 4]
    assert load_recipe(path, ["data.path=one\ntwo"]).data.path == "one\ntwo"
    assert load_recipe(path, ['data.path="""one\ntwo"""']).data.path == "one\ntwo"


def test_overrides_apply_in_order(path: Path) -> None:
    assert load_recipe(path, ["train.epochs=4", "train.epochs=5"]).train.epochs == 5


def test_an_override_can_add_a_table(path: Path) -> None:
    recipe = load_recipe(path, ["models.wide.objective=pointwise", "models.wide.tower=booster"])
    wide = recipe.models["wide"]
    assert isinstance(wide, PointwiseConfig)
    assert wide.tower == "booster"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set train.epochs: write KEY=VALUE"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("train..epochs=3", "--set train..epochs=3: write KEY=VALUE"),
        ('features."a.b.side=item', '--set features."a.b.side=item: write KEY=VALUE'),
        ('features."\\y".side=item', '--set features."\\y".side=item: write KEY=VALUE'),
        ("train.epochs=3\nlr=1", "--set train.epochs=3\nlr=1: more than one value; give each key a --set of its own"),
        ("train.epochs=3\n[train]\nlr=1", "more than one value; give each key a --set of its own"),
        ("name.x=3", "--set name.x=3: 'name' is a value, not a table"),
        ("train.lr.x=3", "--set train.lr.x=3: 'lr' is a value, not a table"),
    ],
)
def test_overrides_that_mean_nothing(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)


# --- what a recipe cannot mean: the override that spoils it, and what is said

COUNTS = [
    "train.epochs",
    "train.shuffle_rows",
    "train.patience",
    "train.evaluations_per_epoch",
    "train.warmup_steps",
    "models.light.train.epochs",
]

PROBLEMS = [
    # unknown keys, with the nearest valid one of that place
    ("train.epocs=3", "train.epocs: unknown key; did you mean 'epochs'?"),
    ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
    ("features.item.sid=user", "features.item.sid: unknown key; did you mean 'side'?"),
    ("features.recent.maxlen=3", "features.recent.maxlen: unknown key; did you mean 'max_len'?"),
    ("features.item.max_len=3", "features.item.max_len: unknown key; known keys: buckets, column, kind, min_count"),
    ("models.rocket.hint.wieght=1", "models.rocket.hint.wieght: unknown key; did you mean 'weight'?"),
    (
        "models.light.hint_weight=1",
        "models.light.hint_weight: unknown key; known keys: label_smoothing, objective, slice_of, tower, train",
    ),
    ("models.light.train.epochs_=1", "models.light.train.epochs_: unknown key; did you mean 'epochs'?"),
    ("towers.light.droput=0.5", "towers.light.droput: unknown key; did you mean 'dropout'?"),
    ("data.split.vald=1", "data.split.vald: unknown key; did you mean 'valid'?"),
    ("export.rows=1", "export.rows: unknown key; known keys: int8, item_key, items"),
    # what is missing
    ("models.other.tower=light", "models.other.objective: required key is missing"),
    ("models.other.objective=pointwise", "models.other.tower: required key is missing"),
    ("features.dense.kind=dense", "features.dense.side: required key is missing"),
    # wrong types: true is no 1, "3" no 3, "false" no false
    ("train.epochs=true", "train.epochs: Input should be a valid integer (got True)"),
    ('train.epochs="3"', "train.epochs: Input should be a valid integer (got '3')"),
    ("train.epochs=2.0", "train.epochs: Input should be a valid integer (got 2.0)"),
    ("train.lr=true", "train.lr: Input should be a valid number (got True)"),
    ('towers.light.batch_norm="false"', "towers.light.batch_norm: Input should be a valid boolean (got 'false')"),
    ("towers.light.batch_norm=False", "towers.light.batch_norm: Input should be a valid boolean (got 'False')"),
    ("towers.light.batch_norm=0", "towers.light.batch_norm: Input should be a valid boolean (got 0)"),
    ("features.item.min_count=true", "features.item.min_count: Input should be a valid integer (got True)"),
    ("data.path=3", "data.path: Input should be a valid string (got 3)"),
    ("train=3", "train: Input should be a table (got 3)"),
    ("features.item=3", "features.item: Input should be a table (got 3)"),
    ("data.split=3", "data.split: Input should be a table (got 3)"),
    ("models.light=[]", "models.light: Input should be a table\n"),
    ("towers.light.hidden=200", "towers.light.hidden: Input should be a valid list (got 200)"),
    # out of range
    ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1 (got 0)"),
    ("train.lr=0", "train.lr: Input should be greater than 0 (got 0"),
    ("train.lr=inf", "train.lr: Input should be a finite number (got inf)"),
    ("train.lr=nan", "train.lr: Input should be a finite number (got nan)"),
    ("train.seed=-1", "train.seed: Input should be greater than or equal to 0 (got -1)"),
    ("train.batch_size=0", "train.batch_size: Input should be greater than or equal to 1"),
    ("train.patience=0", "train.patience: Input should be greater than or equal to 1"),
    ("train.table_l2=-1", "train.table_l2: Input should be greater than or equal to 0"),
    ("models.rocket.hint.weight=-1", "models.rocket.hint.weight: Input should be greater than or equal to 0"),
    ("towers.light.dropout=1", "towers.light.dropout: Input should be less than 1"),
    ("towers.light.hidden=[8, 0]", "towers.light.hidden.1: Input should be greater than or equal to 1 (got 0)"),
    ("embedding.dim=0", "embedding.dim: Input should be greater than or equal to 1"),
    ("embedding.init_std=0", "embedding.init_std: Input should be greater than 0"),
    ("bench.ads=0", "bench.ads: Input should be greater than or equal to 1"),
    ("name=a/b", "name: String should match pattern"),
    # sizes that nobody means, which would end in an allocator's error or never
    ("embedding.dim=100_000_000_000", "embedding.dim: Input should be less than or equal to 65536 (got 100000000000)"),
    ("embedding.dims.item=65_537", "embedding.dims.item: Input should be less than or equal to 65536"),
    ("embedding.init_std=1e300", "embedding.init_std: Input should be less than or equal to 100 (got 1e+300)"),
    ("towers.light.hidden=[8, 65_537]", "towers.light.hidden.1: Input should be less than or equal to 65536"),
    (f"towers.light.hidden={[1] * 101}", "towers.light.hidden: List should have at most 100 items"),
    (
        "features.item.buckets=100_000_000_000_000",
        "features.item.buckets: Input should be less than or equal to 2000000000",
    ),
    (
        "features.item.min_count=10_000_000_000",
        "features.item.min_count: Input should be less than or equal to 1000000000",
    ),
    (
        "features.price.num_buckets=1_000_001",
        "features.price.num_buckets: Input should be less than or equal to 1000000",
    ),
    ("features.recent.max_len=10_000_000_000", "features.recent.max_len: Input should be less than or equal to 100000"),
    ("train.batch_size=1_000_001", "train.batch_size: Input should be less than or equal to 1000000"),
    ("data.row_group_rows=10_000_001", "data.row_group_rows: Input should be less than or equal to 10000000"),
    ("export.parity_rows=10_000_001", "export.parity_rows: Input should be less than or equal to 10000000"),
    ("bench.repeats=10_000_001", "bench.repeats: Input should be less than or equal to 10000000"),
    ("bench.ads=1_000_001", "bench.ads: Input should be less than or equal to 1000000"),
    *((f"{key}=1_000_000_001", f"{key}: Input should be less than or equal to 1000000000") for key in COUNTS),
    # none of the choices
    ("train.monitor=gaucc", "train.monitor: Input should be 'gauc', 'auc', 'log_loss' or 'normalized_entropy'"),
    ("features.item.side=ad", "features.item.side: Input should be 'user', 'item' or 'context' (got 'ad')"),
    ("features.item.kind=id", "features.item.kind: 'id' is none of 'categorical', 'sequence', 'dense'"),
    ("models.rocket.objective=rocket", "models.rocket.objective: 'rocket' is none of 'pointwise', 'rocket_launching'"),
    (
        "models.rocket.route=both",
        "models.rocket.route: Input should be 'none', 'paper' or 'shared' or a valid number (got 'both')",
    ),
    ("data.split.by=date", "data.split.by: 'date' is none of 'files', 'column', 'time', 'random'"),
    # unions: pydantic's names of their members are no keys
    ("data.split.valid=x", "data.split.valid: Input should be a valid list or a valid integer (got 'x')"),
    ("data.split.valid=0", "data.split.valid: Input should be a valid list or greater than or equal to 1 (got 0)"),
    ("data.split.valid=[1.5]", "data.split.valid.0: Input should be a valid string or a valid integer (got 1.5)"),
    ("data.split.column=[1.5]", "data.split.column: Input should be a valid string\n"),
    ("features.recent.max_len=0", "features.recent.max_len: Input should be greater than or equal to 1 (got 0)"),
    ("models.light.objective=3", "models.light.objective: '3' is none of 'pointwise', 'rocket_launching'"),
    # what does not fit together
    ("models.light.tower=ligth", "model 'light' names tower 'ligth', which is not in [towers]: ['booster', 'light']"),
    ("towers.booster.layer_norm=true", 'layer_norm is for kind = "mlp" without batch_norm; this tower has batch_norm'),
    ("models.rocket.booster=big", "model 'rocket' names tower 'big', which is not in [towers]"),
    ("export.model=rockt", "export.model 'rockt' is not in [models]: ['light', 'rocket']"),
    ("embedding.dims.recent=4", "embedding.dims names 'recent', which is no table: ['item', 'user_id']"),
    ("data.split={ by = 'time' }", "split by time needs columns.time"),
    ("data.synthetic.rows=10", "data: give either path or synthetic, not both"),
    ("features.click.side=user", "feature 'click' reads the label column 'click': it gives the answer away"),
    ("features.recent.min_count=7", "features of table 'item' disagree about min_count or buckets"),
    (
        "features.more={side='user', kind='sequence', table='item', pooling='sum'}",
        "table 'item' disagree about pooling",
    ),
    ("models.oracle={objective='pointwise', tower='light'}", "model 'oracle' has the name of another network"),
    ("models.rocket_light={objective='pointwise', tower='light'}", "model 'rocket_light' has the name of another"),
]


@pytest.mark.parametrize("value", ["9" * 4000, "9" * 5000, "[" * 100_000], ids=["long", "longer", "deep"])
def test_very_long_values_are_cut(path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"train\.epochs: .* \(got .*\.\.\.\)$") as caught:
        load_recipe(path, [f"train.epochs={value}"])
    assert len(str(caught.value)) < 600


def test_the_synthetic_log_is_bounded(path: Path) -> None:
    path.write_text(RECIPE.replace('path = "log"', "synthetic = { rows = 10_000_000_000, days = 10_001 }"))
    with pytest.raises(UserError, match=r"data\.synthetic\.rows: .* 1000000000 .*\n.*data\.synthetic\.days: .* 10000 "):
        load_recipe(path)


@pytest.mark.parametrize(("override", "message"), PROBLEMS, ids=[override[:60] for override, _ in PROBLEMS])
def test_problems_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(path, [override])
    said = str(caught.value) + "\n"
    assert said.startswith(f"{path}: the recipe has 1 problem(s):\n")
    assert message in said
    assert "pydantic" not in said


def test_every_problem_is_named_at_once(path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 problem\(s\):\n  .*droput.*\n  .*epocs"):
        load_recipe(path, ["train.epocs=3", "towers.light.droput=1"])


def test_a_model_whose_name_is_no_file_name(path: Path) -> None:
    path.write_text(RECIPE.replace("[models.light]", '[models."../light"]'))
    with pytest.raises(UserError, match=r"models\.\.\./light.*String should match pattern"):
        load_recipe(path)


def test_a_feature_named_like_a_kind_is_named(path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.dense\.sied: unknown key; did you mean 'side'"):
        load_recipe(path, ["features.dense={side='user', sied='user'}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = x", r"small\.toml: not valid TOML: .*line 1"),
        ('name = "a"\nname = "b"', r"small\.toml: not valid TOML: .*overwrite"),
        ("", r"columns: required key is missing"),
        (f"name = {'9' * 5000}", r"small\.toml: not valid TOML: .*5000 digits"),
        (f"name = {'[' * 100_000}", r"small\.toml: not valid TOML: .*recursion"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "small.toml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_recipe(file)


def test_a_log_in_place_of_a_recipe_is_told_how_to_get_one(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("click,user_id\n0,1\n")
    with pytest.raises(UserError, match=r"log\.csv: not valid TOML: .*; a recipe is .* `ctrkit init LOG` writes"):
        load_recipe(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"small\.toml: not valid TOML"):
        load_recipe(file)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read the recipe .*give the path of a TOML file"):
        load_recipe(tmp_path / name)
