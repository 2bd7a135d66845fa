"""What several processes reserve beside the tables that they share out."""

from ctrkit.objectives.distillation import distillation
from ctrkit.training.sharding import _tower_bytes
from tests import networks


def test_frozen_teachers_are_not_reserved_for_again() -> None:
    """They lie in memory already; TorchRec would count six times their tables."""
    student = networks.network(hidden=(8, 4))
    objective = distillation(student, ["teacher"], frozen={"teacher": networks.network(hidden=(64, 32), seed=1)})
    weights = sum(weight.numel() for weight in student.tower.parameters())
    assert _tower_bytes(objective) == 4 * weights
