"""The RAE decoder stage: critic and decoder in turn, exact over a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from training.config import OptimizerConfig, RunConfig
from training.data.scenes import pixels_of
from training.engine import LocalEngine
from training.loop import step_generator, train
from training.losses.critic import CriticConfig
from training.stages.rae_decoder import RAEDecoderStage
from training.stages.rae_decoder_config import (
    DecoderShape,
    RAEDecoderStageConfig,
    ReconstructionConfig,
)
from unimm.checkpoint import load_model, read_config
from unimm.errors import CheckpointError, ConfigError

OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=2, decay_share=0.3, grad_clip=0.0)
PATCH = CriticConfig(kind="patch", start=1, width=4, optimizer=OPTIMIZER)
WEIGHT_FREE = ReconstructionConfig(
    l2_weight=10.0, edge_weight=4.0, lpips_weight=0.0, adversarial_weight=0.1, adversarial_start=2
)
TINY = DecoderShape(hidden_dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=16)


def config(model: Path, output_dir: Path, /, **changes: Any) -> RAEDecoderStageConfig:
    run: dict[str, Any] = {
        "num_steps": 6,
        "precision": "float32",
        "num_workers": 0,
        "log_every": 1,
        "save_every": 2,
        "sample_every": 0,
        "ema_decay": 0.5,
    }
    settings: dict[str, Any] = {
        "init": model,
        "batch_size": 2,
        "max_noise": 0.5,
        "losses": WEIGHT_FREE,
        "critic": PATCH,
        "optimizer": OPTIMIZER,
    }
    run |= changes.pop("run", {})
    return RAEDecoderStageConfig(run=RunConfig(output_dir=output_dir, **run), **settings | changes)


def build(settings: RAEDecoderStageConfig) -> RAEDecoderStage:
    torch.manual_seed(settings.run.seed)
    return RAEDecoderStage(settings)


class Interrupted(RAEDecoderStage):
    """Breaks off before a step."""

    def before_step(self, step: int, engine: LocalEngine) -> None:
        if step == 5:
            raise KeyboardInterrupt
        super().before_step(step, engine)


def test_a_run_that_is_broken_off_goes_on_as_if_it_had_not_been(
    vision_model: Path, tmp_path: Path
) -> None:
    """The critic's update after the last saved step is taken again, from pictures made again."""
    whole = config(vision_model, tmp_path / "whole")
    first = build(whole)
    train(first, whole.run, whole.optimizer, whole)
    broken = config(vision_model, tmp_path / "broken")
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(broken), broken.run, broken.optimizer, broken)
    torch.manual_seed(7)  # the initial weights of a resumed run are replaced
    second = RAEDecoderStage(broken)
    train(second, broken.run, broken.optimizer, broken)
    assert_same_state(first.decoder.state_dict(), second.decoder.state_dict())
    assert first.critic is not None
    assert second.critic is not None
    assert first.critic.updates == second.critic.updates == 4  # steps 1 to 4, each before the next
    assert_same_state(first.critic.model.state_dict(), second.critic.model.state_dict())


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_terms_begin_at_their_steps_and_only_the_decoder_has_gradients(
    vision_model: Path, tmp_path: Path
) -> None:
    stage = build(config(vision_model, tmp_path))
    engine = LocalEngine(stage.groups(), OPTIMIZER, num_steps=6)
    names: list[set[str]] = []
    for step in range(3):
        stage.before_step(step, engine)
        report = stage.loss(
            stage.batch(step), step=step, generator=step_generator(stage.config.run, step)
        )
        names.append(set(report.parts))
        torch.autograd.backward(report.loss)
    assert names[0] == names[1] == {"l1", "l2", "psnr_db"}
    assert names[2] - names[0] == {"adversarial", "adaptive_weight", "critic"}
    assert stage.critic is not None
    assert stage.critic.updates == 1
    trained = {id(p) for group in stage.groups() for p in group.parameters}
    assert trained == {id(p) for p in stage.model.parameters() if p.grad is not None}
    assert all(p.grad is None for p in stage.critic.parameters)
    assert not stage.space.tower.training


def test_the_decoder_reads_raw_features_with_noise_of_each_picture(
    vision_model: Path, tmp_path: Path
) -> None:
    stage = build(config(vision_model, tmp_path, batch_size=8, clean_share=0.25, max_noise=2.0))
    target = pixels_of(stage.batch(0), torch.float32)
    generator = torch.Generator().manual_seed(0)
    clean = stage.space.encode(target)
    added = stage._noised_latents(target, generator) - clean
    deviation = added.std(dim=(1, 2))
    assert not deviation[:2].any()
    assert ((deviation[2:] > 0) & (deviation[2:] < 2.1)).all()
    assert deviation[2:].max() - deviation[2:].min() > 0.2


def test_an_upsampling_decoder_paints_twice_what_the_tower_sees(
    vision_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.new("RGB", (200, 160), (90 * index, 30, 60)).save(tmp_path / f"images/{index}.png")
    shape = DecoderShape(hidden_dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=32)
    settings = config(
        vision_model, tmp_path / "run", decoder=shape, images=tmp_path / "images", critic=PATCH
    )
    stage = build(settings)
    assert (stage.space.image_size, stage.target_size) == (64, 128)
    batch = stage.batch(0)
    assert batch.shape == (2, 3, 128, 128)
    report = stage.loss(batch, step=5, generator=step_generator(settings.run, 5))
    assert torch.isfinite(report.loss)
    assert stage.sample_grid(0).size[0] > 64
    stage.export(tmp_path / "model")
    stored, _ = read_config(tmp_path / "model")
    loaded = load_model(tmp_path / "model", stored, device=torch.device("cpu"), dtype=torch.float32)
    latents = stage.space.encode(torch.zeros(1, 3, 64, 64))
    assert torch.equal(loaded.latents.decode(latents), stage.space.decode(latents))
    assert loaded.latents.decode(latents).shape == (1, 3, 128, 128)


def test_a_world_is_not_drawn_at_another_size(vision_model: Path, tmp_path: Path) -> None:
    shape = DecoderShape(hidden_dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=32)
    with pytest.raises(ConfigError, match=r"images must name a folder .* at 128 pixels"):
        build(config(vision_model, tmp_path, decoder=shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "give either init"),
        ({"tower": "folder"}, "give either init"),
        ({"init": None, "tower": "folder"}, "a tower alone needs decoder"),
        ({"critic": CriticConfig(kind="dino")}, "critic.kind=dino need weights=FOLDER"),
        ({"losses": ReconstructionConfig()}, "lpips_weight > 0 need weights=FOLDER"),
        ({"critic": CriticConfig(kind="patch", start=3)}, r"must not be before critic.start \(3\)"),
        ({"clean_share": 1.5}, r"clean_share must be in \[0, 1\]"),
        ({"crop_scale": 0.5}, "crop_scale must be at least 1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path, **changes)


def test_missing_weights_are_named(vision_model: Path, tmp_path: Path) -> None:
    dino = config(
        vision_model, tmp_path, critic=CriticConfig(kind="dino", start=1), weights=tmp_path
    )
    with pytest.raises(CheckpointError, match="has no DINO ViT-S/8 weights"):
        build(dino)
    lpips = config(
        vision_model, tmp_path, losses=ReconstructionConfig(adversarial_start=2), weights=tmp_path
    )
    with pytest.raises(CheckpointError, match="has no LPIPS weights"):
        build(lpips)
