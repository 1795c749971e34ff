"""DINOv3's own checkpoint format, under transformers' keys."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unimm.checkpoints.keymap import Rule, apply_rules

_LAYER = r"blocks\.(\d+)"
_OURS = r"model.layer.\1"
RULES: tuple[Rule, ...] = (
    Rule(r"cls_token", "embeddings.cls_token"),
    Rule(r"mask_token", "embeddings.mask_token", lambda token: token.view(1, 1, -1)),
    Rule(r"storage_tokens", "embeddings.register_tokens"),
    Rule(r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.\1"),
    Rule(r"rope_embed\.periods", None),  # fixed: recomputed
    Rule(r"norm\.(\w+)", r"norm.\1"),
    Rule(rf"{_LAYER}\.(norm[12]\.\w+)", rf"{_OURS}.\2"),
    Rule(rf"{_LAYER}\.ls([12])\.gamma", rf"{_OURS}.layer_scale\2.lambda1"),
    Rule(rf"{_LAYER}\.attn\.([qkv])\.(\w+)", rf"{_OURS}.attention.\2_proj.\3"),
    Rule(rf"{_LAYER}\.attn\.proj\.(\w+)", rf"{_OURS}.attention.o_proj.\2"),
    Rule(rf"{_LAYER}\.mlp\.w1\.(\w+)", rf"{_OURS}.mlp.gate_proj.\2"),
    Rule(rf"{_LAYER}\.mlp\.w2\.(\w+)", rf"{_OURS}.mlp.up_proj.\2"),
    Rule(rf"{_LAYER}\.mlp\.w3\.(\w+)", rf"{_OURS}.mlp.down_proj.\2"),
    Rule(rf"{_LAYER}\.mlp\.fc1\.(\w+)", rf"{_OURS}.mlp.up_proj.\2"),
    Rule(rf"{_LAYER}\.mlp\.fc2\.(\w+)", rf"{_OURS}.mlp.down_proj.\2"),
)


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict under transformers' keys; keys lose their masked bias."""
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("attn.qkv.bias_mask"):
            continue
        if ".attn.qkv." in key:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                split[key.replace("qkv", name)] = part
        else:
            split[key] = tensor
    masked = {key for key in state if key.endswith("attn.qkv.bias_mask")}
    for key in masked:
        split.pop(key.replace("qkv.bias_mask", "k.bias"), None)
    return apply_rules(split, RULES)


def hf_config(state: Mapping[str, Tensor], *, num_heads: int, image_size: int) -> dict[str, Any]:
    """Return what transformers' DINOv3 config needs, read from an official state dict."""
    hidden_size, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    gated = "blocks.0.mlp.w1.weight" in state
    up = state["blocks.0.mlp.w1.weight" if gated else "blocks.0.mlp.fc1.weight"]
    return {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "image_size": image_size,
        "intermediate_size": len(up),
        "num_attention_heads": num_heads,
        "num_hidden_layers": len({key.split(".")[1] for key in state if key[:7] == "blocks."}),
        "num_register_tokens": state["storage_tokens"].shape[1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "key_bias": "blocks.0.attn.qkv.bias_mask" not in state,
    }
