"""A frozen DINO ViT (Caron et al. 2021, arXiv:2104.14294) as a critic's eyes.

Shape legend:
    B batch      N patch tokens      W width
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metaquery.attention import attend
from unimm.errors import CheckpointError

from .weights import find_tensors

INPUT_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_KEY = re.compile(r"cls_token|pos_embed|patch_embed\.proj\.\w+|blocks\.\d+\..+|norm\.\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoConfig:
    """Size of a DINO ViT and the blocks to look at; the defaults are ViT-S/8.

    Args:
        patch_size: Side of a patch, in pixels, of 224.
        hidden_dim: Width.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Feed-forward width over model width.
        taps: Blocks, from 0, whose outputs are features.
    """

    patch_size: int = 8
    hidden_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    taps: tuple[int, ...] = (2, 5, 8, 11)


class DinoFeatures(nn.Module):
    """Patch features of several blocks, without gradients to the weights; float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        num_tokens = (INPUT_SIZE // config.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens + 1, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        # Of pixels in [-1, 1].
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("mean", (2 * mean - 1).view(3, 1, 1), persistent=False)
        self.register_buffer("std", (2 * std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_folder(cls, folder: Path, config: DinoConfig | None = None) -> "DinoFeatures":
        """Return the ViT with the weights in a folder (``dino_vit_small_patch8_224.pth``).

        Raises:
            CheckpointError: The folder, the file or a tensor is missing.
        """
        what = "DINO ViT-S/8 weights (patch_embed.proj.*, blocks.*)"
        tensors = find_tensors(folder, lambda key: bool(_KEY.fullmatch(key)), what=what)
        model = cls(config or DinoConfig())
        try:
            model.load_state_dict(dino_state(tensors))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{folder} has no whole set of {what}: {reason}") from None
        return model

    def forward(self, pixels: Float[Tensor, "B 3 height width"]) -> list[Tensor]:
        """Return the last block's features, then those of ``taps``, (B, W, N) each.

        Args:
            pixels: In [-1, 1]; scaled to 224 x 224 whatever their size.
        """
        x = (pixels.float() - self.mean) / self.std
        x = F.interpolate(x, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        tokens = self.patch_embed(x).flatten(2).mT  # (B, N, W)
        hidden = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        taps = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index in self.config.taps:
                taps.append(hidden[:, 1:].mT)
        return [hidden[:, 1:].mT, *taps]


class _Block(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, int(width * config.mlp_ratio))
        self.fc2 = nn.Linear(int(width * config.mlp_ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.transpose(1, 3).unbind(2)
        x = x + self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        update: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + update


def dino_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return DINO's tensors under our keys; the bias of attention's keys is dropped.

    It cancels in the softmax; the critic of StyleGAN-T (arXiv:2301.09515) has none either.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.startswith("norm."):
            continue  # the features are taken before it
        renamed = key.replace("patch_embed.proj", "patch_embed")
        state[re.sub(r"\.(attn|mlp)\.", ".", renamed)] = tensor
    for key, tensor in state.items():
        if key.endswith("qkv.bias"):
            width = len(tensor) // 3
            state[key] = torch.cat([tensor[:width], torch.zeros(width), tensor[2 * width :]])
    return state
