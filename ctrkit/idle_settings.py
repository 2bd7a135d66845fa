"""Settings of a recipe that come to nothing on the log at hand: told before training, which would not show it."""

from collections.abc import Iterable, Iterator

from ctrkit.config.models import TaughtConfig
from ctrkit.config.recipe import Recipe
from ctrkit.data.batch import Batch
from ctrkit.data.crossing import Crossing


def idle_settings(recipe: Recipe, model: str, steps: int, sample: Iterable[Batch]) -> Iterator[str]:
    """What to warn of.

    Args:
        recipe: with the model.
        model: key of [models].
        steps: of its whole training.
        sample: rows of the training part; looked at only if the model makes unexposed candidates of them.
    """
    config = recipe.models[model]
    warmups = {f"models.{model}.{key}": hint.warmup_steps for key, hint in config.hints.items()}
    warmups["train"] = recipe.train_config(model).warmup_steps
    for key, warmup in warmups.items():
        if warmup > steps:
            what = "learning rate" if key == "train" else "hint"
            yield (
                f"{key}.warmup_steps = {warmup:,}, but training '{model}' takes {steps:,} steps: the {what} ends at "
                f"{steps / warmup:.2g} of what it is after its warm-up; give fewer"
            )
    if isinstance(config, TaughtConfig) and config.unexposed:
        crossing, batches = Crossing.of(recipe.schema_()), list(sample)
        rows = sum(map(len, batches))
        if rows and not any(crossing.changes(batch) for batch in batches):
            yield (
                f"models.{model}.unexposed: {rows:,} rows of the training part all show one ad, so that candidates "
                "which nobody saw are the impressions themselves; set unexposed = 0"
            )
