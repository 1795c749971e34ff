"""Tiny models in the layout of Scale-RAE's releases, with random weights.

The official keys are written out here; their values come from a model of ours, so what a reader
makes of them can be compared with it.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metaquery.connector import ConnectorConfig
from metaquery.dit import DiTConfig
from metaquery.generator import GeneratorConfig
from metaquery.rope import grid_rope, sincos_embedding
from unimm.chat_style import ChatStyle
from unimm.checkpoints.keymap import Rule, place
from unimm.checkpoints.names import canonical
from unimm.checkpoints.rae_decoder import DECODER_RULES
from unimm.checkpoints.scale_rae import model_rules
from unimm.checkpoints.towers import file_rules
from unimm.config import UniMMConfig
from unimm.latents import LatentSpaceConfig, RAEDecoderConfig
from unimm.model import UniMM
from unimm.options import SamplingDefaults
from unimm.testing import tiny_tokenizer

DIM, TOKENS = 16, 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which variant and size of a release."""

    width: int = 32
    depth: int = 1
    tied: bool = True
    stores_head: bool = False
    ddt: bool = False
    webssl: bool = False
    vae: bool = False
    dropout: float = 0.1
    prefix: str = ""
    shards: int = 2
    pickled: bool = False


VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""config.json of an autoencoder whose 2 x 2 points are a token of ``DIM`` channels."""


def config_of(options: Options) -> UniMMConfig:
    """Return what a reader should make of the release."""
    if options.vae:
        one = config_of(replace(options, vae=False))
        eyes = {**one.latents.tower, "image_size": 20}
        return replace(
            one,
            latents=LatentSpaceConfig(kind="flux_vae", image_size=16, patch_size=4, tower=VAE),
            vision=LatentSpaceConfig(image_size=20, patch_size=4, tower=eyes),
        )
    tower: dict[str, Any] = {
        "hidden_size": DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
    }
    tower |= {"mlp_ratio": 2} if options.webssl else {"intermediate_size": 32}
    mean = (0.485, 0.456, 0.406) if options.webssl else (0.5, 0.5, 0.5)
    std = (0.229, 0.224, 0.225) if options.webssl else (0.5, 0.5, 0.5)
    dit = DiTConfig(
        num_latent_tokens=TOKENS,
        latent_dim=DIM,
        cond_dim=options.width,
        hidden_dim=options.width,
        depth=options.depth,
        num_heads=2,
        ddt_dim=48 if options.ddt else options.width,
        ddt_depth=1 if options.ddt else 0,
        ddt_heads=3 if options.ddt else 2,
    )
    return UniMMConfig(
        language={
            "hidden_size": options.width,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "hidden_act": "silu",
            "model_type": "qwen2",
            "vocab_size": len(tiny_tokenizer()),
            "tie_word_embeddings": options.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        latents=LatentSpaceConfig(
            kind="dinov2" if options.webssl else "siglip2",
            image_size=16,
            patch_size=4,
            tower=tower,
            affine_norm=options.webssl,
            image_mean=mean,
            image_std=std,
            decoder=RAEDecoderConfig(
                latent_dim=DIM,
                image_size=16,
                patch_size=4,
                hidden_dim=16,
                depth=1,
                num_heads=2,
                mlp_dim=32,
            ),
        ),
        generator=GeneratorConfig(
            connector=ConnectorConfig(kind="linear", in_dim=options.width, out_dim=options.width),
            dit=dit,
            condition_dropout=options.dropout,
        ),
        num_queries=TOKENS,
        chat=ChatStyle(**{**vars_of(ChatStyle.scale_rae()), "yes": ("yes",), "no": ("no",)}),
        sampling=SamplingDefaults(num_steps=50),
    )


def vars_of(style: ChatStyle) -> dict[str, Any]:
    return {name: getattr(style, name) for name in ChatStyle.__dataclass_fields__}


def official_config(options: Options) -> dict[str, Any]:
    """Return config.json as the official code saves it."""

    def size(backbone: int, head: int) -> int | list[int]:
        return [backbone, head] if options.ddt else backbone

    vae = {
        "generation_alignment_tower": "owner/flux-res16",
        "mm_vision_tower_aux_token_len_list": [25],
    }
    return {
        **(vae if options.vae else {}),
        "model_type": "cambrian_qwen",
        "architectures": ["ScaleRAEQwenForCausalLM"],
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": options.width,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "rope_theta": 1e6,
        "tie_word_embeddings": options.tied,
        "mm_vision_tower_aux_list": ["owner/eyes-interp16"],
        "mm_projector_type": "mlp2x_gelu",
        "vision_loss": "ddt-loss" if options.ddt else "diffusion-loss",
        "diffusion_model_hidden_size": size(options.width, 48),
        "diffusion_model_depth": size(options.depth, 1),
        "diffusion_model_heads": size(2, 3),
        "diffusion_model_channels": DIM,
        "diffusion_model_z_channels": options.width,
        "diffusion_class_dropout_prob": options.dropout,
        "diffusion_base_dim": None,
    }


def _with(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


def _linear(*prefixes: str) -> list[str]:
    return [key for prefix in prefixes for key in _with(prefix, "weight", "bias")]


def official_keys(options: Options) -> list[str]:
    """Return the keys of a release that hold learned weights."""
    layer, block = "model.layers.0", "diff_head.model.dit_blocks"
    keys = [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.latent_queries",
        *_linear(*(f"{layer}.self_attn.{name}_proj" for name in "qkv")),
        f"{layer}.self_attn.o_proj.weight",
        *(f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        f"{layer}.input_layernorm.weight",
        f"{layer}.post_attention_layernorm.weight",
        *_linear("model.mm_projector.0", "model.mm_projector.2", "diff_head_projector"),
        *_linear("diff_head.model.x_embedder.proj"),
        *_linear("diff_head.model.t_embedder.mlp.0", "diff_head.model.t_embedder.mlp.2"),
        "diff_head.model.final_layer.norm_final.weight",
        *_linear("diff_head.model.final_layer.linear"),
        *_linear("diff_head.model.final_layer.adaLN_modulation.1"),
    ]
    if options.dropout:
        keys.append("diff_head.model.y_embedder.dropout_embedding")
    if not options.tied or options.stores_head:
        keys.append("lm_head.weight")
    if options.ddt:
        keys += _linear("diff_head.model.s_embedder.proj", "diff_head.model.s_projector")
    for index in range(options.depth + options.ddt):
        keys += _with(f"{block}.{index}", "norm1.weight", "norm2.weight")
        keys += _linear(
            *_with(
                f"{block}.{index}",
                "attn.qkv",
                "attn.proj",
                "mlp.w12",
                "mlp.w3",
                "adaLN_modulation.1",
            )
        )
    return keys


DECODER_KEYS = [
    *_linear("decoder_embed", "decoder_norm", "decoder_pred"),
    "decoder_pos_embed",
    "trainable_cls_token",
    *_linear(
        *_with(
            "decoder_layers.0",
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
            "layernorm_before",
            "layernorm_after",
        )
    ),
]

_SIGLIP_KEYS = [
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias",
    "embeddings.position_embedding.weight",
    *_linear(
        "post_layernorm",
        *_with(
            "encoder.layers.0",
            *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
            *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
        ),
    ),
]

_DINO_KEYS = [
    *_with("embeddings", "cls_token", "mask_token", "position_embeddings"),
    *_linear("embeddings.patch_embeddings.projection", "layernorm"),
    *_with("encoder.layer.0", "layer_scale1.lambda1", "layer_scale2.lambda1"),
    *_linear(
        *_with(
            "encoder.layer.0",
            *(f"attention.attention.{name}" for name in ("query", "key", "value")),
            *("attention.output.dense", "norm1", "norm2", "mlp.fc1", "mlp.fc2"),
        )
    ),
]


def collect(keys: list[str], rules: tuple[Rule, ...], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under official keys, in the official shapes."""
    state = {}
    for key in keys:
        placed = place(key, rules)
        if placed.key is None:  # a tied head that is stored all the same
            state[key] = ours["language.model.embed_tokens.weight"].clone()
            continue
        tensor = ours[placed.key]
        if placed.rows is not None:
            tensor = tensor.chunk(placed.rows[1])[placed.rows[0]]
        if key.endswith("embedder.proj.weight"):
            tensor = tensor[:, :, None, None]
        state[key] = tensor.clone().contiguous()
    return state


def build(options: Options) -> UniMM:
    """Return a model of ours with nothing at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniMM(config_of(options)).eval()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1
        if not options.dropout:
            model.generator.dit.null_condition.data.zero_()
    return model


def official_state(model: UniMM, options: Options) -> dict[str, Tensor]:
    """Return the state dict of a release, fixed tables included."""
    dit = model.config.generator.dit
    rules = model_rules(dit.depth, dit.ddt_depth, tied=options.tied)
    state = collect(official_keys(options), rules, dict(model.state_dict()))
    state["diff_head.model.pos_embed"] = sincos_embedding(TOKENS, options.width)[None]
    name = "enc_rope" if options.ddt else "feat_rope"
    state[f"diff_head.model.{name}.freqs_cos"] = grid_rope(TOKENS, options.width // 2)[
        0
    ].contiguous()
    return {options.prefix + key: tensor for key, tensor in state.items()}


def write_scale_rae(folder: Path, options: Options | None = None) -> UniMM:
    """Write a release with tower and decoder inside, and return the model that it holds."""
    options = options or Options()
    model = build(options)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(official_config(options)))
    tiny_tokenizer().save_pretrained(str(folder))
    write_shards(folder, official_state(model, options), options)
    write_tower(folder / "tower", model, options)
    if options.vae:
        write_vae(folder / "vae", model)
    else:
        write_decoder(folder / "decoder", model)
    return model


def write_shards(folder: Path, state: dict[str, Tensor], options: Options) -> None:
    """Write tensors as shards with their index."""
    stem, suffix = ("pytorch_model", "bin") if options.pickled else ("model", "safetensors")
    weight_map: dict[str, str] = {}
    for number in range(options.shards):
        name = f"{stem}-{number + 1:05}-of-{options.shards:05}.{suffix}"
        part = dict(list(state.items())[number :: options.shards])
        weight_map |= dict.fromkeys(part, name)
        if options.pickled:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def write_tower(folder: Path, model: UniMM, options: Options) -> None:
    """Write the vision tower as on the hub: SigLIP-2 beside its text half, or DINOv2."""
    folder.mkdir()
    prefix = "vision.tower." if options.vae else "latents.tower."
    ours = {
        canonical(key).removeprefix(prefix): value
        for key, value in model.state_dict().items()
        if key.startswith(prefix)
    }
    kind = model.config.seen.kind
    sizes = {**model.config.seen.tower, "patch_size": 4}
    rules = file_rules(kind, affine_norm=True)
    if options.webssl:
        save_file(collect(_DINO_KEYS, rules, ours), folder / "model.safetensors")
        tree = {"model_type": "dinov2", **sizes}
    else:
        state = {f"vision_model.{k}": v for k, v in collect(_SIGLIP_KEYS, rules, ours).items()}
        state["logit_scale"] = torch.zeros(1)
        state["text_model.final_layer_norm.weight"] = torch.ones(4)
        state["vision_model.head.probe"] = torch.ones(1, 1, 4)
        save_file(state, folder / "model.safetensors")
        tree = {"model_type": "siglip", "vision_config": sizes}
    (folder / "config.json").write_text(json.dumps(tree))


def write_vae(folder: Path, model: UniMM) -> None:
    """Write the autoencoder as diffusers does."""
    folder.mkdir()
    vae: Any = model.latents
    state = {key: value.clone() for key, value in vae.vae.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    tree = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0.dev0", **VAE}
    (folder / "config.json").write_text(json.dumps(tree))


def write_decoder(folder: Path, model: UniMM) -> None:
    """Write the pixel decoder as the official repositories hold it."""
    folder.mkdir()
    ours = {
        key.removeprefix("latents.decoder."): value
        for key, value in model.state_dict().items()
        if key.startswith("latents.decoder.")
    }
    torch.save(collect(DECODER_KEYS, DECODER_RULES, ours), folder / "model.pt")
    tree = {
        "model_type": "vit_mae",
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "hidden_size": 768,  # says nothing: the released code overwrites it
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(tree))
