from pathlib import Path

import pytest
import torch

from tests.unit.unimm.checkpoints.releases import write_scale_rae
from unimm.cli import run
from unimm.pipeline import Pipeline


def test_a_release_becomes_a_directory_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scale_rae(tmp_path / "release")
    (tmp_path / "release" / "tower").rename(tmp_path / "far")
    arguments = ["convert", "scale-rae", "release", "ours", "--dtype", "bfloat16"]
    assert run([*arguments, "--tower", "far"]) == 0
    assert capsys.readouterr().out == "ours\n"
    pipeline = Pipeline.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert pipeline.model.dtype == torch.bfloat16
    assert pipeline.latent_shape == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["magic", "release", "ours"], "unknown system 'magic'"),
        (["scale-rae", "absent", "ours"], "no model directory absent"),
        (["rae-dit", "absent.pt", "ours"], "there is no file absent.pt"),
        (["one"], "got 1 arguments"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
