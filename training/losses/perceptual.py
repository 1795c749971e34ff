"""LPIPS: how different two pictures look to a VGG16 (Zhang et al. 2018, arXiv:1801.03924).

Shape legend:
    B batch      C channels of a feature map
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unimm.errors import CheckpointError

from .weights import find_tensors

VGG16_CHANNELS = (64, 128, 256, 512, 512)
CONVS_OF_STAGE = (2, 2, 3, 3, 3)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for pixels in [-1, 1]."""

EPS = 1e-10

_CONV = re.compile(r"(?:net\.)?(?:slice(\d+)|features)\.(\d+)\.(weight|bias)")
_LIN = re.compile(r"lin(\d)\.model\.1\.weight")


class VGG16Features(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman, arXiv:1409.1556), tapped in five places.

    Args:
        channels: Of the five stages.
    """

    def __init__(self, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__()
        widths = [w for w, n in zip(channels, CONVS_OF_STAGE, strict=True) for _ in range(n)]
        inputs = [3, *widths[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(inputs, widths, strict=True)
        )

    def forward(self, x: Float[Tensor, "B 3 height width"]) -> list[Tensor]:
        """Return the last activation of every stage, (B, C, h, w) each."""
        taps, convs = [], iter(self.convs)
        for stage, count in enumerate(CONVS_OF_STAGE):
            if stage:
                x = F.max_pool2d(x, 2)
            for _ in range(count):
                x = F.relu(next(convs)(x))
            taps.append(x)
        return taps


class LPIPS(nn.Module):
    """Learned perceptual distance of pictures in [-1, 1]; frozen, in float32.

    Args:
        channels: Of the five stages; fewer than VGG16's for tests.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: Sequence[int] = VGG16_CHANNELS) -> None:
        super().__init__()
        self.features = VGG16Features(channels)
        self.lins = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in channels)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_folder(cls, folder: Path, channels: Sequence[int] = VGG16_CHANNELS) -> "LPIPS":
        """Return LPIPS with the weights in a folder.

        VGG16's are those of torchvision (``vgg16-397923af.pth``, keys ``features.*``), the linear
        layers' those of the LPIPS release (``vgg.pth``, keys ``lin*.model.1.weight``).

        Raises:
            CheckpointError: The folder, a file or a tensor is missing.
        """
        what = "LPIPS weights (VGG16: features.*, linear layers: lin*.model.1.weight)"
        tensors = find_tensors(
            folder, lambda key: bool(_CONV.fullmatch(key) or _LIN.fullmatch(key)), what=what
        )
        model = cls(channels)
        try:
            model.load_state_dict(lpips_state(tensors))
        except (RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{folder} has no whole set of {what}: {reason}") from None
        return model

    def forward(
        self, a: Float[Tensor, "B 3 height width"], b: Float[Tensor, "B 3 height width"]
    ) -> Float[Tensor, "B"]:
        both = (torch.cat([a, b]).float() - self.shift) / self.scale
        distances = []
        for tap, lin in zip(self.features(both), self.lins, strict=True):
            # vector_norm has gradient 0 where all channels are 0; a square root has none.
            unit = tap / (torch.linalg.vector_norm(tap, dim=1, keepdim=True) + EPS)
            first, second = unit.chunk(2)
            distances.append(lin((first - second).square()).mean(dim=(1, 2, 3)))
        return torch.stack(distances).sum(dim=0)


def lpips_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the LPIPS release or of torchvision under our keys.

    Convolutions come in the order of their numbers, whether those count the whole network's
    layers or one stage's.
    """
    order: dict[tuple[int, int], dict[str, Tensor]] = {}
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := _CONV.fullmatch(key):
            place = int(match[1] or 0), int(match[2])
            order.setdefault(place, {})[match[3]] = tensor
        elif match := _LIN.fullmatch(key):
            state[f"lins.{match[1]}.weight"] = tensor
    for index, place in enumerate(sorted(order)):
        state |= {f"features.convs.{index}.{name}": t for name, t in order[place].items()}
    return state
