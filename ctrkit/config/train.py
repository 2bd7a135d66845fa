"""Recipes: [train]."""

from typing import Annotated, Literal

from pydantic import Field

from ctrkit.config.data import Count, Seed, Strict


class TrainConfig(Strict):
    """The training loop. `[models.NAME.train]` overrides any of it for one model."""

    epochs: Count = 2
    batch_size: Annotated[int, Field(ge=1, le=10**6)] = 1024
    seed: Seed = 0
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    table_optimizer: Literal["adam", "adagrad", "rowwise_adagrad"] = "adam"
    table_lr: Annotated[float, Field(gt=0)] = 1e-3
    table_l2: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the tables' L2 penalty (`ctrkit.training.table_optimizer`)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    clip_norm: Annotated[float, Field(ge=0)] = 10.0
    """Largest gradient norm of the towers; 0 leaves it as it is."""
    monitor: Literal["gauc", "auc", "log_loss", "normalized_entropy"] = "gauc"
    """Metric of the validation part that early stopping and the best checkpoint go by, for the network that ships."""
    patience: Count = 2
    """Evaluations without improvement before training stops."""
    evaluations_per_epoch: Count = 1
    shuffle_rows: Count = 1_000_000
    """Rows of the shuffle buffer."""
    order: Literal["random", "log"] = "random"
    """log: row groups as they lie, only the buffer is shuffled: for a log sorted by time, its newest rows come last."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the hidden layers' products of training in bfloat16, weights and logits in fp32; evaluation is in fp32."""
    shards: Annotated[int, Field(ge=1, le=4096)] = 8
    """Parts that every buffer is dealt in: as many processes as divide it train on the same batches."""
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the impressions without a click that are trained on, their weight divided by it; batches get smaller."""
    label_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training part's labels that is used, the same ones in every epoch: the others count as unknown."""
    skip_unreadable: bool = False
    """Leave out row groups of the prepared log that cannot be read, with a warning and a count."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Newest checkpoints that stay, beside the best one."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """Directory of another run: start from the best weights of its model of the same name."""
    tensorboard: bool = False
