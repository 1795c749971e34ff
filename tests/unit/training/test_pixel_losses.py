"""What the losses of pixels promise, whatever their weights."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from training.config import OptimizerConfig
from training.losses.adversarial import (
    adaptive_weight,
    generator_loss,
    hinge_loss,
    quantise,
    vanilla_loss,
)
from training.losses.augment import augment, augment_by, translate
from training.losses.critic import Critic, CriticConfig
from training.losses.dino import DinoConfig, DinoFeatures
from training.losses.discriminator import DinoDiscriminator, PatchDiscriminator
from training.losses.perceptual import CONVS_OF_STAGE, LPIPS
from training.stages.decoder import visible_error
from unimm.errors import CheckpointError

CHANNELS = (2, 3, 4, 5, 6)
TINY_DINO = DinoConfig(
    patch_size=56, hidden_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, taps=(0, 1)
)


def pictures(count: int, *, seed: int = 0, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=Generator().manual_seed(seed)) * 2 - 1


def lpips(seed: int = 0) -> LPIPS:
    torch.manual_seed(seed)
    model = LPIPS(CHANNELS)
    for lin in model.lins:
        torch.nn.init.uniform_(lin.get_parameter("weight"))
    return model


def test_lpips_is_a_distance_with_gradients_everywhere() -> None:
    model, a, b = lpips(), pictures(2), pictures(2, seed=1)
    assert torch.equal(model(a, a), torch.zeros(2))
    torch.testing.assert_close(model(a, b), model(b, a))
    assert (model(a, b) > 0).all()
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    for conv in model.features.convs:
        torch.nn.init.constant_(
            conv.get_parameter("bias"), -10.0
        )  # no unit fires: a square root has no gradient
    torch.autograd.backward(model(black, pictures(1)).sum())
    assert black.grad is not None
    assert torch.isfinite(black.grad).all()
    assert not any(p.requires_grad for p in model.parameters())


def write_lpips(folder: Path, model: LPIPS) -> None:
    """Write VGG16 as torchvision does and the linear layers as the LPIPS release does."""
    folder.mkdir()
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert len(numbers) == sum(CONVS_OF_STAGE)
    vgg = {"classifier.0.weight": torch.zeros(1)}
    for number, conv in zip(numbers, model.features.convs, strict=True):
        vgg |= {f"features.{number}.{name}": p.clone() for name, p in conv.named_parameters()}
    torch.save(vgg, folder / "vgg16.pth")
    lins = {
        f"lin{i}.model.1.weight": lin.get_parameter("weight").clone()
        for i, lin in enumerate(model.lins)
    }
    save_file(lins, folder / "vgg.safetensors")


def test_lpips_reads_the_released_files_and_says_what_is_missing(tmp_path: Path) -> None:
    model = lpips()
    write_lpips(tmp_path / "weights", model)
    read = LPIPS.from_folder(tmp_path / "weights", CHANNELS)
    assert torch.equal(
        read(pictures(1), pictures(1, seed=1)), model(pictures(1), pictures(1, seed=1))
    )
    (tmp_path / "weights" / "vgg.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no whole set of LPIPS weights .*lins\.0\.weight"):
        LPIPS.from_folder(tmp_path / "weights", CHANNELS)
    (tmp_path / "weights" / "vgg16.pth").unlink()
    with pytest.raises(CheckpointError, match=r"has no LPIPS weights .*train without it"):
        LPIPS.from_folder(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="there is no folder"):
        LPIPS.from_folder(tmp_path / "absent")


def dino_file(features: DinoFeatures) -> dict[str, Tensor]:
    """Return the state under DINO's own keys, with a bias of attention's keys."""
    state = {}
    for key, tensor in features.state_dict().items():
        named = key.replace("patch_embed.", "patch_embed.proj.")
        for part, prefix in (("qkv", "attn"), ("proj", "attn"), ("fc1", "mlp"), ("fc2", "mlp")):
            if key.startswith("blocks."):
                named = named.replace(f".{part}.", f".{prefix}.{part}.")
        state[named] = tensor.clone()
    return {**state, "norm.weight": torch.ones(1), "head.weight": torch.ones(1)}


def test_dino_is_read_without_the_bias_of_its_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = DinoFeatures(TINY_DINO)
    width = TINY_DINO.hidden_dim
    for block in features.blocks:
        block.get_parameter("qkv.bias")[width : 2 * width] = 3.0
    torch.save(dino_file(features), tmp_path / "dino.pth")
    read = DinoFeatures.from_folder(tmp_path, TINY_DINO)
    assert not read.get_parameter("blocks.0.qkv.bias")[width : 2 * width].any()
    # A bias common to all keys cancels in the softmax.
    for ours, theirs in zip(read(pictures(1)), features(pictures(1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="no whole set of DINO"):
        DinoFeatures.from_folder(tmp_path)


def test_a_dino_critic_stores_its_heads_and_moves_with_its_features() -> None:
    torch.manual_seed(0)
    critic = DinoDiscriminator(DinoFeatures(TINY_DINO))
    assert all(key.startswith("heads.") for key in critic.state_dict())
    assert critic(pictures(2)).shape == (2, 3 * 16)
    critic.to("meta")
    assert {p.device.type for p in critic.frozen[0].parameters()} == {"meta"}


def test_losses_of_known_verdicts() -> None:
    right, wrong = torch.full((2, 3), 2.0), torch.full((2, 3), -2.0)
    assert hinge_loss(right, wrong).item() == 0.0
    assert hinge_loss(wrong, right).item() == 3.0
    assert vanilla_loss(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(0.6931, abs=1e-4)
    assert generator_loss(right).item() == -2.0


def test_the_adaptive_weight_makes_both_gradients_equally_long() -> None:
    weight = torch.randn(4, 4, generator=Generator().manual_seed(0)).requires_grad_()
    first, second = weight.abs().mean(), 0.01 * weight.square().sum()
    factor = adaptive_weight(first, second, weight)
    assert adaptive_weight(first, second, weight, largest=0.5).item() == 0.5
    pull = torch.autograd.grad(first, weight)[0].norm()
    push = torch.autograd.grad(factor * second, weight)[0].norm()
    assert push.item() == pytest.approx(pull.item(), rel=1e-3)


def test_quantised_pixels_are_the_256_levels_of_a_file() -> None:
    levels = torch.arange(256) / 127.5 - 1
    assert torch.equal(quantise(levels), levels)
    values = torch.linspace(-1.5, 1.5, 1001)
    error = (quantise(values) - values.clamp(-1, 1)).abs().max().item()
    assert error <= 0.5 / 127.5 + 1e-6


def test_middle_draws_change_nothing_and_others_are_differentiable() -> None:
    image = pictures(2)
    torch.testing.assert_close(augment_by(image, torch.full((5, 2), 0.5)), image)
    image.requires_grad_()
    moved = augment(image, generator=Generator().manual_seed(3))
    assert (moved - image).abs().max() > 0.1
    assert torch.autograd.grad(moved.square().sum(), image)[0].abs().sum() > 0


def test_a_translation_brings_in_zeros() -> None:
    image = pictures(2, side=8)
    moved = translate(image, torch.tensor([1, 0]), torch.tensor([0, -2]))
    assert torch.equal(moved[0, :, :-1], image[0, :, 1:])
    assert not moved[0, :, -1].any()
    assert torch.equal(moved[1, :, :, 2:], image[1, :, :, :-2])
    assert not moved[1, :, :, :2].any()


def critic(seed: int = 0, **changes: object) -> Critic:
    torch.manual_seed(seed)
    config = CriticConfig(
        kind="patch",
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=2),
        **changes,  # type: ignore[arg-type]
    )
    return Critic(PatchDiscriminator(8), config, num_steps=100)


def test_a_critic_learns_to_tell_noise_from_plain_pictures() -> None:
    judge, random = critic(augment=False), Generator().manual_seed(0)
    plain = torch.linspace(-1, 1, 8).view(8, 1, 1, 1).expand(8, 3, 32, 32)
    losses = [judge.learn(plain, pictures(8, seed=i), random).item() for i in range(16)]
    assert losses[-1] < 0.6 * losses[0]
    assert judge.judge(pictures(4), random) > judge.judge(plain[:4], random)


def test_judging_teaches_the_picture_and_not_the_critic() -> None:
    judge = critic()
    before = {name: t.clone() for name, t in judge.model.state_dict().items()}
    fake = pictures(2).requires_grad_()
    torch.autograd.backward(judge.judge(fake, Generator().manual_seed(0)))
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters)
    for name, tensor in judge.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_critic_goes_on_exactly_and_survives_a_bad_picture() -> None:
    straight = critic()
    for i in range(3):
        straight.learn(pictures(2, seed=i), pictures(2, seed=9 + i), Generator().manual_seed(i))
    straight.learn(pictures(2) * torch.nan, pictures(2), Generator().manual_seed(0))
    resumed = critic(seed=1)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for judge in (straight, resumed):
        loss = judge.learn(pictures(2), pictures(2, seed=1), Generator().manual_seed(5))
        assert torch.isfinite(loss)
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert straight.updates == resumed.updates == 5


def test_an_error_nobody_sees_costs_nothing_and_a_faint_line_does() -> None:
    error = torch.zeros(1, 3, 8, 8)
    error[0, :, 0] = 0.05  # 0.087 in RGB: below the margin
    error[0, 0, 4] = 0.25
    error[0, 1, 4] = -0.2  # 0.32 in RGB
    seen = visible_error(error, 0.1)
    assert seen.shape == (1, 8, 8)
    assert not seen[0, :4].any()
    torch.testing.assert_close(seen[0, 4], torch.full((8,), 0.1025**0.5 - 0.1))


def test_a_perfect_picture_has_a_gradient() -> None:
    error = torch.zeros(1, 3, 4, 4, requires_grad=True)
    visible_error(error, 0.1).sum().backward()
    assert error.grad is not None
    assert not error.grad.any()  # and not NaN, as a norm's could be at 0
