import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metaquery.dit import DiT, DiTConfig
from tests.unit.unimm.checkpoints.releases import DECODER_KEYS, collect, write_scale_rae
from unimm.checkpoints.keymap import LABEL_TABLE, place, rae_dit
from unimm.checkpoints.names import canonical
from unimm.checkpoints.rae import autoencoder_rules
from unimm.checkpoints.rae_autoencoder import (
    convert_autoencoder,
    load_autoencoder,
    read_autoencoder,
)
from unimm.checkpoints.rae_dit import convert_dit, load_class_dit, read_class_dit
from unimm.errors import CheckpointError
from unimm.latents import LatentSpaceConfig, RAEDecoderConfig, build_latent_space
from unimm.latents.tower import TowerLatents


def named(module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict under the names of files."""
    return {canonical(name): tensor for name, tensor in module.state_dict().items()}


def pictures(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def write_rae(folder: Path, statistics: dict[str, Tensor | None] | None) -> TowerLatents:
    """Write a SigLIP-2 autoencoder in RAE's own files; return its parts without statistics."""
    model = write_scale_rae(folder.with_name("release"))
    (folder.with_name("release") / "decoder").rename(folder)
    (folder.with_name("release") / "tower").rename(folder / "encoder")
    if statistics is not None:
        torch.save(statistics, folder / "stat.pt")
    space = model.latents
    assert isinstance(space, TowerLatents)
    return space


def plain(space: TowerLatents, pixels: Tensor) -> Tensor:
    """Return raw features of pictures as RAE scales them: 16 pixels a token."""
    small = torch.nn.functional.interpolate(pixels, size=(16, 16), mode="bicubic")
    return space.features(space.normalise(small))


@pytest.mark.parametrize("has_mean", [True, False])
def test_raes_own_files_are_read_and_a_mean_of_none_is_zero(tmp_path: Path, has_mean: bool) -> None:
    mean = torch.randn(16, 4, 4, generator=torch.Generator().manual_seed(1))
    variance = torch.rand(16, 4, 4, generator=torch.Generator().manual_seed(2)) * 1e-3
    parts = write_rae(tmp_path / "rae", {"mean": mean if has_mean else None, "var": variance})
    space = read_autoencoder(tmp_path / "rae")
    pixels = pictures(64)
    tokens = mean.flatten(1).mT if has_mean else torch.zeros(16, 16)
    expected = (plain(parts, pixels) - tokens) / (variance.flatten(1).mT + 1e-5).sqrt()
    latents = space.encode(pixels)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        space.decode(latents), parts.decode(plain(parts, pixels)), rtol=1e-4, atol=1e-4
    )


def test_a_converted_autoencoder_is_the_same(tmp_path: Path) -> None:
    write_rae(tmp_path / "rae", {"mean": None, "var": torch.full((16, 4, 4), 0.5)})
    convert_autoencoder(tmp_path / "rae", tmp_path / "ours", dtype=torch.float32)
    first, second = read_autoencoder(tmp_path / "rae"), load_autoencoder(tmp_path / "ours")
    assert first.config == second.config
    assert torch.equal(first.encode(pictures(64)), second.encode(pictures(64)))


def test_statistics_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    write_rae(tmp_path / "rae", {"mean": None, "var": torch.ones(16, 5, 5)})
    with pytest.raises(CheckpointError, match=r"\(channels, 4, 4\), got \(16, 5, 5\)"):
        read_autoencoder(tmp_path / "rae")


DIFFUSERS_KEYS = [
    "encoder.model.embeddings.cls_token",
    "encoder.model.embeddings.mask_token",
    "encoder.model.embeddings.position_embeddings",
    "encoder.model.embeddings.register_tokens",
    *(f"encoder.model.embeddings.patch_embeddings.projection.{n}" for n in ("weight", "bias")),
    *(f"encoder.model.encoder.layer.0.layer_scale{n}.lambda1" for n in (1, 2)),
    *(
        f"encoder.model.encoder.layer.0.{part}.{name}"
        for part in (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            "norm1",
            "norm2",
            "mlp.fc1",
            "mlp.fc2",
        )
        for name in ("weight", "bias")
    ),
    *(
        "decoder."
        + key.replace("attention.attention.query", "attention.to_q")
        .replace("attention.attention.key", "attention.to_k")
        .replace("attention.attention.value", "attention.to_v")
        .replace("attention.output.dense", "attention.to_out.0")
        for key in DECODER_KEYS
    ),
]


def diffusers_space() -> TowerLatents:
    config = LatentSpaceConfig(
        kind="dinov2_with_registers",
        image_size=32,
        encoder_size=28,
        patch_size=14,
        tower={
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "mlp_ratio": 2,
            "image_size": 70,
        },
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        decoder=RAEDecoderConfig(
            latent_dim=64,
            image_size=32,
            patch_size=16,
            hidden_dim=16,
            depth=1,
            num_heads=2,
            mlp_dim=32,
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        space = build_latent_space(config)
        for parameter in space.parameters():
            parameter.data = torch.randn_like(parameter) * 0.2
    assert isinstance(space, TowerLatents)
    return space.eval()


def test_diffusers_format_is_read_with_its_own_epsilon(tmp_path: Path) -> None:
    parts = diffusers_space()
    state = collect(DIFFUSERS_KEYS, autoencoder_rules("dinov2_with_registers"), named(parts))
    std = torch.full((64, 2, 2), 1e-4)
    state |= {
        "encoder_mean": torch.zeros(1, 3, 1, 1),
        "encoder_std": torch.ones(1, 3, 1, 1),
        "_latents_mean": torch.zeros(1),
        "_latents_std": std,
    }
    folder = tmp_path / "diffusers"
    folder.mkdir()
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    tree: dict[str, Any] = {
        "_class_name": "AutoencoderRAE",
        "encoder_type": "dinov2",
        "encoder_patch_size": 14,
        "encoder_input_size": 28,
        "encoder_hidden_size": 64,
        "decoder_num_attention_heads": 2,
        "latents_mean": None,
    }
    (folder / "config.json").write_text(json.dumps(tree))
    space = read_autoencoder(folder)
    raw = parts.features(parts.normalise(pictures(32)))
    torch.testing.assert_close(space.encode(pictures(32)), raw / 1.1e-4)
    torch.testing.assert_close(space.decode(raw / 1.1e-4), parts.decode(raw), rtol=1e-4, atol=1e-4)


def dit_state(model: DiT, classes: Tensor) -> dict[str, Tensor]:
    """Return RAE's state dict of a DiT: class rows, then the null row."""
    config = model.config
    ours = {**model.state_dict(), LABEL_TABLE: torch.cat([classes, model.null_condition[None]])}
    with_head = bool(config.ddt_depth)
    keys = [
        "t_embedder.W",
        "y_embedder.embedding_table.weight",
        "final_layer.norm_final.weight",
        *(
            f"{part}.{name}"
            for part in (
                "x_embedder.proj",
                "t_embedder.mlp.0",
                "t_embedder.mlp.2",
                "final_layer.linear",
                "final_layer.adaLN_modulation.1",
                *(("s_embedder.proj", "s_projector") if with_head else ()),
            )
            for name in ("weight", "bias")
        ),
    ]
    for index in range(config.depth + config.ddt_depth):
        keys += [f"blocks.{index}.norm{n}.weight" for n in (1, 2)]
        keys += [
            f"blocks.{index}.{part}.{name}"
            for part in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1")
            for name in ("weight", "bias")
        ]
    rules = rae_dit(config.depth, config.ddt_depth)
    assert all(place(key, rules).key in ours for key in keys)
    state = collect(keys, rules, ours)
    prefix = "enc_feat_rope" if with_head else "feat_rope"
    state["pos_embed"] = torch.zeros(1, config.num_latent_tokens, config.hidden_dim)
    head_dim = config.hidden_dim // config.num_heads
    state[f"{prefix}.freqs_cos"] = torch.zeros(config.num_latent_tokens, head_dim)
    if with_head:
        head_dim = config.ddt_dim // config.ddt_heads
        state["dec_feat_rope.freqs_cos"] = torch.zeros(config.num_latent_tokens, head_dim)
    return state


@pytest.mark.parametrize("with_head", [True, False])
def test_a_class_conditional_dit_is_read_and_converted(tmp_path: Path, with_head: bool) -> None:
    config = DiTConfig(
        num_latent_tokens=16,
        latent_dim=8,
        cond_dim=16,
        hidden_dim=16,
        depth=2,
        num_heads=2,
        ddt_dim=24 if with_head else 16,
        ddt_depth=1 if with_head else 0,
        ddt_heads=3 if with_head else 2,
        ddt_time=with_head,
        cond_silu=with_head,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = DiT(config).eval()
        for parameter in dit.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
        classes = torch.randn(10, 16)
    path = tmp_path / "stage2_model.pt"
    torch.save({"ema": dit_state(dit, classes), "step": 1}, path)
    model = read_class_dit(path)
    assert model.config == config
    x_t, t = torch.ones(2, 16, 8), torch.tensor([0.3, 0.8])
    expected = dit(x_t, t, classes[[3, 0]], torch.tensor([False, True]))
    assert torch.equal(model(x_t, t, torch.tensor([3, -1])), expected)
    convert_dit(path, tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(load_class_dit(tmp_path / "ours")(x_t, t, torch.tensor([3, -1])), expected)


def test_a_file_that_is_no_dit_says_so(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "stage2_model.pt")
    with pytest.raises(CheckpointError, match="no stage-2 model of RAE"):
        read_class_dit(tmp_path / "stage2_model.pt")
