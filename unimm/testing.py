"""Doubles for tests: the whole model, tiny and with random weights. No download, no training."""

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerFast

from metaquery.connector import ConnectorConfig
from metaquery.dit import DiTConfig
from metaquery.generator import GeneratorConfig
from unimm.config import UniMMConfig
from unimm.latents import LatentSpaceConfig
from unimm.model import UniMM
from unimm.options import SamplingDefaults
from unimm.pipeline import Pipeline
from unimm.tokenizer import train_tokenizer

_TEXTS = (
    "a picture of a red circle left of a blue square",
    "user\n",
    "assistant\n",
    "system\n",
    "what color is the circle\nred",
    "a picture of a red circle\nmatch?",
    "describe",
    "yes",
    "no",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a small trained tokenizer that encodes any text."""
    return train_tokenizer(_TEXTS * 4, vocab_size=384)


def tiny_config(*, vocab_size: int = 384, hidden_size: int = 32) -> UniMMConfig:
    """Return a model of 16 x 16 pictures whose latents are their 4 x 4 patches."""
    latents = LatentSpaceConfig(kind="patches", image_size=16, patch_size=4)
    return UniMMConfig(
        language={
            "model_type": "qwen2",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        latents=latents,
        generator=GeneratorConfig(
            connector=ConnectorConfig(kind="linear", in_dim=hidden_size, out_dim=32),
            dit=DiTConfig(
                num_latent_tokens=latents.num_tokens,
                latent_dim=latents.dim,
                cond_dim=32,
                hidden_dim=48,
                depth=2,
                num_heads=4,
            ),
        ),
        num_queries=latents.num_tokens,
        sampling=SamplingDefaults(num_steps=4),
    )


def tiny_vae_space() -> LatentSpaceConfig:
    """Return the space of a convolutional autoencoder (extra ``vae``) on 16 x 16 pictures."""
    blocks = 2
    return LatentSpaceConfig(
        kind="flux_vae",
        image_size=16,
        patch_size=4,
        tower={
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
            "block_out_channels": [8] * blocks,
            "latent_channels": 3,
            "norm_num_groups": 4,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    )


def tiny_two_space_config() -> UniMMConfig:
    """Return a model that draws a VAE's latents and sees 25 patches of 30 x 30 pictures."""
    base, drawn = tiny_config(), tiny_vae_space()
    dit = replace(base.generator.dit, latent_dim=drawn.dim)
    return replace(
        base,
        latents=drawn,
        vision=LatentSpaceConfig(kind="patches", image_size=30, patch_size=6),
        generator=replace(base.generator, dit=dit),
    )


def tiny_model(seed: int = 0, *, config: UniMMConfig | None = None) -> UniMM:
    """Return a tiny model with random weights in which every part has an effect.

    A fresh DiT starts with zero gates and a zero output; here every weight is random, so that a
    test can see whether a part is used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UniMM(config or tiny_config())
        for parameter in model.generator.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        # Random embeddings of the default size make all next tokens about equally likely.
        for parameter in model.language.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(5)
    return model.eval()


def tiny_pipeline(seed: int = 0) -> Pipeline:
    """Return a tiny model, ready to use."""
    return Pipeline(tiny_model(seed), tiny_tokenizer())
