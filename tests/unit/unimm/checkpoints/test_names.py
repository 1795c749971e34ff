import pytest

from unimm.checkpoints.names import canonical


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ("attention.attention.query.weight", "attention.q_proj.weight"),
        ("attention.attention.value.bias", "attention.v_proj.bias"),
        ("attention.output.dense.weight", "attention.o_proj.weight"),
        ("attention.q_proj.weight", "attention.q_proj.weight"),
        ("norm1.weight", "norm1.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["latents.tower.", "tower."])
def test_older_releases_names_of_dinov2_become_todays(
    prefix: str, installed: str, expected: str
) -> None:
    layer = f"{prefix}encoder.layer.11."
    assert canonical(layer + installed) == layer + expected


def test_other_parts_keep_their_names() -> None:
    name = "language.bert.encoder.layer.0.attention.output.dense.weight"
    assert canonical(name) == name
