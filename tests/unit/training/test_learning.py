"""A stage learns what its input says, not only what is common."""

from pathlib import Path

import torch

from training.config import OptimizerConfig, RunConfig
from training.data.scenes import pixels_of
from training.engine import LocalEngine
from training.loop import step_generator
from training.stages.decoder import DecoderConfig, DecoderStage
from unimm.checkpoint import load_model, read_config

NUM_STEPS = 120
NUM_JUDGED = 5


def test_the_decoder_beats_every_picture_that_ignores_the_latents(
    vision_model: Path, tmp_path: Path
) -> None:
    """The best constant picture has, in each value, the median's absolute and the mean's squared
    error; no decoder that ignores its latents gets below that on these very pictures."""
    config = DecoderConfig(
        run=RunConfig(output_dir=tmp_path, num_steps=NUM_STEPS, precision="float32"),
        init=vision_model,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5, decay_share=0.3),
        batch_size=16,
        edge_weight=0.0,
    )
    stage = DecoderStage(config)
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=NUM_STEPS)
    losses, pictures = [], []
    for step in range(NUM_STEPS):
        batch = stage.batch(step)
        report = stage.loss(batch, step=step, generator=step_generator(config.run, step))
        losses.append(report.loss.item())
        pictures.append(batch)
        engine.step(report.loss, step)
    pixels = pixels_of(torch.cat(pictures[-NUM_JUDGED:]), torch.float32)
    absolute = (pixels - pixels.median(dim=0).values).abs().mean().item()
    squared = (pixels - pixels.mean(dim=0)).square().mean().item()
    ignoring = config.l1_weight * absolute + config.l2_weight * squared
    learned = sum(losses[-NUM_JUDGED:]) / NUM_JUDGED
    assert learned < 0.9 * ignoring


def test_a_stage_trained_in_bfloat16_exports_what_the_next_one_loads(
    vision_model: Path, tmp_path: Path
) -> None:
    """Casting must not tear tied embeddings apart: what is frozen comes out as it went in."""
    run = RunConfig(output_dir=tmp_path, num_steps=1, precision="bfloat16")
    stage = DecoderStage(DecoderConfig(run=run, init=vision_model))
    stage.model.float()
    stage.export(tmp_path / "model")
    config, _ = read_config(tmp_path / "model")
    exported = load_model(
        tmp_path / "model", config, device=torch.device("cpu"), dtype=torch.float32
    )
    before = load_model(vision_model, config, device=torch.device("cpu"), dtype=torch.float32)
    for name, weight in before.named_parameters():
        assert torch.equal(exported.get_parameter(name), weight.bfloat16().float()), name
