"""Names that a recipe, the objective made of it, its optimizers and its checkpoints agree on."""

SINGLE = ""
"""Role of the network of a model that has one."""
LIGHT = "light"
"""Role of the network that boosters teach."""
LABEL = "label"
"""Loss of a network that is the only one of its model."""
BOOSTER = "booster"
"""Role of the one booster; of several it begins so."""
MEAN = "mean"
"""Role of the mean of a model's networks."""
SLIMMABLE = "slimmable"
"""The tower that networks of every width are views of."""


def tower_name(role: str) -> str:
    """Of the tower that a network has to itself."""
    return role or "tower"


def part_name(role: str, part: str) -> str:
    """Of what is trained with a network's tower and does not serve: an auxiliary head, a projection."""
    return f"{role}-{part}"


def tower_of_part(name: str) -> str:
    """Name of the tower that a tower, or such a part of one, belongs to."""
    return tower_name(name.partition("-")[0])
