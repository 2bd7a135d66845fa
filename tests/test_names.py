from ctrkit.names import part_name, tower_name, tower_of_part


def test_a_part_belongs_to_the_tower_of_part_its_role() -> None:
    for role in ("", "light", "peer1"):
        assert tower_of_part(part_name(role, "projection-0")) == tower_of_part(tower_name(role)) == tower_name(role)
    assert len({tower_name(role) for role in ("", "light", "peer1", "peer10")}) == 4
    # as the checkpoints of earlier trainings have them
    assert [part_name("", "auxiliary"), part_name("light", "auxiliary")] == ["-auxiliary", "light-auxiliary"]
    assert tower_name("") == "tower"
