"""Scale-RAE's baseline: it sees by a vision tower and draws the latents of FLUX's autoencoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.unimm.checkpoints.releases import Options, config_of, write_scale_rae
from unimm.checkpoints.foreign import load_scale_rae
from unimm.cli import run
from unimm.errors import CheckpointError
from unimm.loading import inspect
from unimm.model import UniMM
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline

pytest.importorskip("diffusers")
CPU = torch.device("cpu")
VARIANT = Options(vae=True)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UniMM]:
    folder = tmp_path_factory.mktemp("vae") / "release"
    return folder, write_scale_rae(folder, VARIANT)


@pytest.fixture
def release(written: tuple[Path, UniMM], tmp_path: Path) -> Path:
    shutil.copytree(written[0], tmp_path / "release")
    return tmp_path / "release"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_tensor_of_the_variant_is_read_exactly(written: tuple[Path, UniMM]) -> None:
    folder, expected = written
    model = load_scale_rae(folder, device=CPU, dtype=torch.float32).model
    assert model.config == config_of(VARIANT)
    ours = model.state_dict()
    assert set(ours) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert model.config.generator.timestep_shift == pytest.approx((16 * 16 / 4096) ** 0.5)


def test_it_is_converted_inspected_and_draws_the_same_as_ours(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(release.parent)
    (release / "vae").rename("far")
    assert run(["convert", "scale-rae", "release", "ours", "--decoder", "far"]) == 0
    (release.parent / "far").rename(release.parent / "flux")  # beside the model, as its repository
    released, ours = Pipeline.from_pretrained(release), Pipeline.from_pretrained("ours")
    options = GenerationOptions(num_steps=2)
    (first,), (second,) = (p.generate("a red circle", options) for p in (released, ours))
    assert torch.equal(first.latents, second.latents)
    assert first.score == second.score
    assert ours.space == released.space
    assert ours.space.startswith("flux_vae-16x16-")
    footprint, space = inspect("ours")
    foreign, _ = inspect(release)
    assert dict(footprint.parameters) == dict(foreign.parameters)
    model = ours.model
    for name in model.parts:
        assert footprint.parameters[name] == sum(p.numel() for p in model.part(name).parameters())
    assert footprint.parameters["vision"] > 0
    assert space == ours.space


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("vae/config.json", {"latent_channels": 3}, "no square of the grid makes 16 channels"),
        ("vae/config.json", {"_class_name": "VQModel"}, "must be 'AutoencoderKL', got 'VQModel'"),
        ("vae/config.json", {"hidden_size": 3}, "an AutoencoderKL has no hidden_size"),
        ("vae/config.json", {"latents_mean": [0.0]}, "latents_mean and latents_std"),
        ("vae/config.json", {"block_out_channels": [8, 16]}, "has shape .* the model's latents"),
        ("config.json", {"generation_alignment_tower": "owner/flux-res256"}, "cover 16"),
        ("config.json", {"mm_vision_tower_aux_token_len_list": [7]}, "must be a square, got 7"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(
    release: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(release / file, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_scale_rae(release, device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_wrong_tensor_of_the_autoencoder_is_named(release: Path, change: str) -> None:
    state = load_file(release / "vae" / WEIGHTS)
    if change == "missing":
        del state["decoder.conv_out.bias"]
    else:
        state["discriminator.weight"] = torch.zeros(1)
    save_file(state, release / "vae" / WEIGHTS)
    key = "latents.vae.decoder.conv_out.bias" if change == "missing" else "discriminator.weight"
    with pytest.raises(CheckpointError, match=key):
        load_scale_rae(release, device=CPU, dtype=torch.float32)


def test_an_autoencoder_that_is_nowhere_is_told_with_the_option(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree(release / "vae")
    with pytest.raises(CheckpointError, match=r"no folder vae.*owner/flux.*--decoder FOLDER"):
        load_scale_rae(release, device=CPU, dtype=torch.float32)
