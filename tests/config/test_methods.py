"""Recipes of learning methods: what they cannot mean is said with the model and the key."""

import re
from pathlib import Path
from typing import Any

import pytest

from ctrkit.config.recipe import Recipe, load_recipe, serving_dict
from ctrkit.errors import UserError
from tests import small_recipe

ROCKET = {"objective": "rocket_launching", "light": "light", "booster": "booster"}
SEEING = "towers.seeing={hidden=[8],privileged=true}"
POSITION = 'features.position={side="context",privileged=true}'


def load(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(small_recipe.write(folder), overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # --- teachers
        (
            ['models.kd={objective="distillation",student="light",teachers=["nobody"]}'],
            r"model 'kd' is taught by 'nobody', which is no network of a model above it "
            r"\(\['booster', 'light', 'rocket', 'rocket_booster', 'rocket_light'\]\) and not in columns.teachers",
        ),
        (
            ['models.booster={objective="distillation",student="booster",teachers=["rocket_light"]}'],
            r"model 'booster' is taught by 'rocket_light', which is no network of a model above it \(\['light'\]\)",
        ),
        (
            ['models.light={objective="distillation",student="light",teachers=["light"]}'],
            r"model 'light' is taught by 'light', .* above it \(none\) and not in columns.teachers \(none\)",
        ),
        (['models.rocket.teachers=["x"]'], "model 'rocket' is taught by 'x', which is no network"),
        (
            ['columns.teachers=["booster"]', 'models.rocket.teachers=["booster"]'],
            "model 'rocket' is taught by 'booster', which is a column of columns.teachers and the name of a network",
        ),
        (
            ['models.kd={objective="distillation",student="light",teachers=[]}'],
            "models.kd.teachers: List should have at least 1 item",
        ),
        (
            ['columns.teachers=["score"]', 'features.score={side="item",kind="dense"}'],
            "feature 'score' reads the teachers column 'score': it gives the answer away",
        ),
        (
            ['columns.teachers=["click"]', 'models.kd={objective="distillation",student="light",teachers=["click"]}'],
            "teachers names the label column 'click'",
        ),
        # --- hints
        (
            ["models.rocket.hint={temperature=2.0}"],
            'models.rocket.hint: temperature is a key of loss = "kl"; this hint is "logit_mse"',
        ),
        (['models.rocket.hint={loss="kl",temperature=1e-30}'], "models.rocket.hint.temperature: .* greater than or eq"),
        (['models.rocket.hint={loss="kl",temperature=1e30}'], "models.rocket.hint.temperature: .* less than or equal"),
        (
            ["models.rocket.hint={gradient_share=0.5,weight=0.1}"],
            "models.rocket.hint: gradient_share says how loud the hint is, and weight would change that",
        ),
        (['models.rocket.hint={loss="cosine"}'], "models.rocket.hint.loss: Input should be 'logit_mse'"),
        (["models.rocket.hint.weight=-1.0"], "models.rocket.hint.weight: Input should be greater than or equal to 0"),
        (["models.rocket.hint.gradient_share=0.0"], "models.rocket.hint.gradient_share: .* greater than 0"),
        (["models.rocket.hint={lambda=0.5}"], "models.rocket.hint.lambda: unknown key"),
        (["models.rocket.hint.warmup=4"], "models.rocket.hint.warmup: unknown key; did you mean 'warmup_steps'"),
        # --- what would do nothing
        (
            ['models.rocket.hint={loss="kl",labelled_only=true}', "models.rocket.unexposed=1.0"],
            "models.rocket: candidates that nobody saw have no label, so labelled_only leaves unexposed nothing to say",
        ),
        # --- routes: a word that means no is no switch, and a string of false is not true (R0's flags)
        (['models.rocket.route="blocked"'], "models.rocket.route: Input should be 'none', 'paper' or 'shared'"),
        (
            ["models.rocket.route=0.5", "models.rocket.share=none"],
            'models.rocket: route = 0.5 is a share .* with share = "none" and no shared_layers that is nothing',
        ),
        (["models.rocket.route=1.5"], "models.rocket.route: .*less than or equal to 1"),
        (["models.rocket.route=true"], "models.rocket.route"),
        (['models.rocket.auxiliary_head="false"'], "models.rocket.auxiliary_head: Input should be a valid boolean"),
        (['towers.light.privileged="False"'], "towers.light.privileged: Input should be a valid boolean"),
        (["models.rocket.shared_layers=[[0]]"], r"models.rocket.shared_layers.0: List should have at least 2 items"),
        (["models.rocket.shared_layers=[[0,-1]]"], "models.rocket.shared_layers.0.1: .* greater than or equal to 0"),
        # a pair would be lost, or two layers of a tower would be one
        (["models.rocket.shared_layers=[[0,0],[0,1]]"], "models.rocket: shared_layers names light's layer 0 twice"),
        (["models.rocket.shared_layers=[[0,1],[1,1]]"], "models.rocket: shared_layers names booster's layer 1 twice"),
        (["models.rocket.booster=[]"], "models.rocket.booster"),
        (['models.rocket.booster=["booster","heavy"]'], "model 'rocket' names tower 'heavy', which is not in"),
        # --- kinds of towers
        (["towers.light.cross_layers=2"], 'towers.light: cross_layers is a key of kind = "dcn_v2"; this tower is of'),
        (["towers.light.attention_hidden=[4]"], "towers.light: attention_hidden is a key of kind"),
        (['towers.light.kind="din"'], "towers.light.kind: Input should be 'mlp'"),
        # --- peers
        (
            ['models.dml={objective="mutual_learning",peers=["light"]}'],
            "models.dml.peers: List should have at least 2 items",
        ),
        (
            ['models.dml={objective="mutual_learning",peers=["light","light"],serve=2}'],
            "models.dml: serve = 2, but there are 2 peers, counted from 0",
        ),
        (
            ['models.dml={objective="mutual_learning",peers=["light","light"],serve="worst"}'],
            "models.dml.serve: Input should be 'best'",
        ),
        # --- a mix
        *(
            (
                [f'models.mix={{objective="co_training",networks={{a="light",b="booster"}},{keys}}}'],
                rf"models.mix: {named} names 'c', which is not in networks: \['a', 'b'\]",
            )
            for named, keys in {
                "own_tables": 'own_tables=["c"],lessons=[{student="a",teachers=["b"]}]',
                "serve": 'serve=["c"],lessons=[{student="a",teachers=["b"]}]',
                "gradient_to_shared": 'gradient_to_shared={c=0.5},lessons=[{student="a",teachers=["b"]}]',
                "label_weight": 'label_weight={c=0.5},lessons=[{student="a",teachers=["b"]}]',
                "lessons.student": 'lessons=[{student="c",teachers=["b"]}]',
            }.items()
        ),
        *(
            (
                [
                    'models.mix={objective="co_training",networks={a="light",b="booster"},'
                    f'lessons=[{{student="a",teachers=["b"]{blocked}}}],{keys}}}'
                ],
                f"models.mix: {message}",
            )
            for blocked, keys, message in (
                ("", 'own_tables=["b"],gradient_to_shared={b=0.5}', "gradient_to_shared of 'b', which shares nothing"),
                ("", 'own_tables=["b"],gradient_to_shared={a=0.5}', "gradient_to_shared of 'a', which shares nothing"),
                (",blocked=false", 'updates="in_turn"', 'updates = "in_turn" moves the student alone in its turn'),
            )
        ),
        # --- privileged features
        (
            [SEEING, POSITION, 'models.rocket.light="seeing"'],
            "model 'rocket': tower 'seeing' sees privileged features, so its network 'light' cannot ship",
        ),
        (
            [SEEING, POSITION, 'models.dml={objective="mutual_learning",peers=["light","seeing"]}'],
            "model 'dml': tower 'seeing' sees privileged features, so its network 'peer1' cannot ship",
        ),
        (
            [SEEING, POSITION, 'models.alone={objective="pointwise",tower="seeing"}'],
            r"model 'alone' goes online \(export.model, else the last one\), but its tower sees privileged features",
        ),
        (
            [SEEING, 'models.rocket.booster="seeing"'],
            "model 'rocket' has a privileged tower, but no feature is `privileged = true`",
        ),
        (
            ['features.shown_ads={side="context",kind="sequence",table="ad_id",max_len=4,privileged=true}'],
            "table 'ad_id' is shared by features that are privileged and features that are not",
        ),
        (
            [f"features.{name}.privileged=true" for name in ("user_id", "city", "recent_ads", "ad_id", "category_id")]
            + ["features.price.privileged=true", "features.device.privileged=true"],
            "every feature is privileged: nothing is left to serve with",
        ),
        (
            [POSITION, "export.items=ads.parquet", "export.item_key=position"],
            "export.item_key 'position' is the column of the privileged feature 'position', which does not exist",
        ),
        (
            [POSITION, 'features.slot={side="context",column="position"}'],
            "column 'position' feeds 'position', which is privileged, and 'slot', which is not",
        ),
        # --- names of networks are names of results
        (
            [
                'models.c={objective="co_training",networks={mean="light",b="booster"},'
                'lessons=[{student="mean",teachers=["b"]}]}'
            ],
            "models.c: networks: 'mean' is what the mean of several is called",
        ),
        (
            [
                'models.dml={objective="mutual_learning",peers=["light","light"],serve="mean"}',
                'models.dml_mean={objective="pointwise",tower="light"}',
            ],
            "models 'dml' and 'dml_mean' both have a network 'dml_mean' in the results; rename",
        ),
        (
            [
                'models.a_b={objective="co_training",networks={c="light",d="booster"},'
                'lessons=[{student="c",teachers=["d"]}]}',
                'models.a={objective="co_training",networks={b_c="light",d="booster"},'
                'lessons=[{student="b_c",teachers=["d"]}]}',
            ],
            "models 'a_b' and 'a' both have a network 'a_b_c' in the results; rename",
        ),
        # --- widths
        (
            ['models.slim={objective="slimmable",tower="light",widths=[0.3333333,0.3333334,1.0],serve=0.3333333}'],
            "models.slim: widths has one twice, to the six digits",
        ),
        (
            ['models.slim={objective="slimmable",tower="light",gradient_to_tables=0.0}'],
            "models.slim: gradient_to_tables = 0 leaves the tables to a booster, and there is none",
        ),
        (
            ['models.slim={objective="slimmable",tower="light",distillation=0,booster="booster",hint={weight=0}}'],
            "models.slim: the narrower widths learn from nothing",
        ),
        *(
            (
                [f'models.slim={{objective="slimmable",tower="light",sampling="list",{key}}}'],
                f"models.slim: {key.split('=')[0]} is about widths that are drawn",
            )
            for key in ("samples=3", "non_uniform=true")
        ),
        *(
            ([f'models.slim={{objective="slimmable",tower="light",{key}}}'], "model 'slim': .* tower 'light' has not")
            for key in ("calibration_rows=100", 'norm="shared_batch_norm"')
        ),
        (
            [
                "towers.light.batch_norm=true",
                'models.slim={objective="slimmable",tower="light",norm="shared_batch_norm",calibration_rows=100}',
            ],
            "models.slim: calibration_rows are for universal_batch_norm, the norm is shared_batch_norm",
        ),
        (
            [
                'models.slim={objective="slimmable",tower="booster"}',
                'models.cut={objective="pointwise",tower="booster",slice_of="slim",train={warm_start="yesterday"}}',
            ],
            "model 'cut' starts from a slice of 'slim'; its train.warm_start would be another start",
        ),
        # --- unexposed candidates
        (
            [f"features.{name}.side=context" for name in ("recent_ads", "ad_id", "category_id", "price")]
            + ["models.rocket.unexposed=1.0"],
            "model 'rocket': unexposed candidates are made of other impressions' ads, but no feature has",
        ),
        # --- hints that nobody hears
        (["models.rocket.teacher_hint.weight=2.0"], "models.rocket: teacher_hint is what `teachers` say"),
        # --- labels
        (["train.label_rate=0.0"], "train.label_rate: .* greater than 0"),
        (["train.label_rate=1.5"], "train.label_rate: .* less than or equal to 1"),
        (["models.rocket.label_smoothing=1.0"], "models.rocket.label_smoothing: .* less than 1"),
    ],
)
def test_problems_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, *overrides)
    assert re.search(message, str(raised.value)), str(raised.value)


def test_a_privileged_tower_may_stand_alone_if_another_model_goes_online(tmp_path: Path) -> None:
    alone = 'models.alone={objective="pointwise",tower="seeing"}'
    recipe = load(tmp_path, SEEING, POSITION, alone, "export.model=rocket")
    assert not recipe.can_ship("alone")
    assert recipe.can_ship("rocket")


def test_networks_that_may_teach_are_those_above_by_their_names(tmp_path: Path) -> None:
    dml = 'models.dml={objective="mutual_learning",peers=["light","booster"],serve=1}'
    kd = 'models.kd={objective="distillation",student="light",teachers=["dml","dml_peer0","rocket_booster","light"]}'
    recipe = load(tmp_path, dml, kd)
    assert recipe.frozen_teachers("kd") == {
        "dml": ("dml", "peer1"), "dml_peer0": ("dml", "peer0"),
        "rocket_booster": ("rocket", "booster"), "light": ("light", ""),
    }  # fmt: skip
    assert recipe.frozen_teachers("dml") == {}


def test_networks_are_listed_as_results_name_them(tmp_path: Path) -> None:
    both = 'models.both={objective="ensemble",members=["light","light"],serve="mean"}'
    slim = 'models.slim={objective="slimmable",tower="booster",widths=[1.0,0.5],booster="light"}'
    found = load(tmp_path, both, slim).networks()
    assert {name: (each.model, each.role, each.tower) for name, each in found.items()} == {
        "light": ("light", "", "light"), "booster": ("booster", "", "booster"),
        "rocket_light": ("rocket", "light", "light"), "rocket_booster": ("rocket", "booster", "booster"),
        "both_member0": ("both", "member0", "light"), "both_member1": ("both", "member1", "light"),
        "both_mean": ("both", "mean", None),
        "slim_w0.5": ("slim", "w0.5", "booster"), "slim_w1.0": ("slim", "w1.0", "booster"),
        "slim_booster": ("slim", "booster", "light"),
    }  # fmt: skip
    assert [each.name for each in found.values()] == list(found)


def test_a_column_that_teaches_is_no_network(tmp_path: Path) -> None:
    kd = 'models.kd={objective="distillation",student="light",teachers=["score","light"]}'
    recipe = load(tmp_path, 'columns.teachers=["score"]', kd)
    assert recipe.models["kd"].taught_by == ("score", "light")
    assert list(recipe.frozen_teachers("kd")) == ["light"]


def test_a_bundle_does_not_name_the_columns_that_taught(tmp_path: Path) -> None:
    kd = 'models.kd={objective="distillation",student="light",teachers=["score","light"]}'
    mix = 'models.mix={objective="co_training",networks={a="light"},lessons=[{student="a",teachers=["light","score"]}]}'
    models = serving_dict(load(tmp_path, 'columns.teachers=["score"]', kd, mix))["models"]
    assert models["kd"]["teachers"] == models["mix"]["lessons"][0]["teachers"] == ["light"]


@pytest.mark.parametrize("objective", ["mutual_learning", "ensemble"])
@pytest.mark.parametrize(
    "keys",
    ['kind="dcn_v2"', "hidden=[8]", 'activation="tanh"', "batch_norm=true", "layer_norm=true", "privileged=true"],
)
def test_a_mean_that_cannot_ship_is_refused_before_training(tmp_path: Path, objective: str, keys: str) -> None:
    members = "peers" if objective == "mutual_learning" else "members"
    towers = ["towers.one={hidden=[8,4]}", "towers.two={" + ("" if "hidden" in keys else "hidden=[8,4],") + keys + "}"]
    model = f'models.both={{objective="{objective}",{members}=["one","two"],serve="SERVE"}}'
    load(tmp_path, *towers, model.replace("two", "one").replace("SERVE", "mean"))
    if "privileged" not in keys:
        load(tmp_path, *towers, model.replace("SERVE", "best"))
    message = "model 'both' ships a mean, which is one MLP" if "privileged" not in keys else "privileged"
    with pytest.raises(UserError, match=message):
        load(tmp_path, *towers, POSITION, model.replace("SERVE", "mean"))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({**ROCKET}, ("logit_mse", 1.0, "shared")),
        ({**ROCKET, "route": 0.25, "hint": {"loss": "kl", "temperature": 3.0}}, ("kl", 1.0, 0.25)),
        ({**ROCKET, "route": 1, "hint": {"weight": 0.1}}, ("logit_mse", 0.1, 1.0)),
    ],
)
def test_what_a_rocket_says(tmp_path: Path, model: dict[str, Any], expected: tuple[Any, ...]) -> None:
    content = load(tmp_path).model_dump(exclude_unset=True)
    recipe = Recipe.model_validate({**content, "models": {"rocket": model}})
    rocket: Any = recipe.models["rocket"]
    assert (rocket.hint.loss, rocket.hint.weight, rocket.route) == expected
