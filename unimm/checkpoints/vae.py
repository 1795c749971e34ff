"""An AutoencoderKL as diffusers stores it: ``config.json`` beside its one file of weights.

FLUX's is the subfolder ``vae`` of its repository.
"""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from unimm.checkpoints.keymap import Rule
from unimm.checkpoints.tensors import TensorFolder, read_json
from unimm.errors import CheckpointError
from unimm.latents import LatentSpaceConfig

FOLDER = "vae"
PATTERNS = (f"{FOLDER}/*.json", f"{FOLDER}/*.safetensors", "README.md")
"""Files of a repository of diffusers that belong to its autoencoder."""

VAE_RULES = (Rule(r"((?:encoder|decoder|quant_conv|post_quant_conv)\..+)", r"\1"),)
"""Keys are diffusers' own on both sides."""

_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_SETTINGS = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "force_upcast",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
)


@dataclass(frozen=True, slots=True)
class VAESource:
    """An autoencoder's configuration and where its weights are.

    Args:
        config: What :class:`unimm.latents.LatentSpaceConfig` takes as ``tower``.
        weights: Its file.
        where: Its ``config.json``, for messages.
    """

    config: dict[str, Any]
    weights: TensorFolder
    where: Path

    def latent_space(self, *, num_tokens: int, dim: int | None = None) -> LatentSpaceConfig:
        """Return the space of this autoencoder's latents.

        Args:
            num_tokens: Of a picture, a square number; gives the picture's size.
            dim: Channels of a token; None for 2 x 2 points of the grid, as FLUX has it.

        Raises:
            CheckpointError: No square of the grid has so many channels.
        """
        channels = int(self.config["latent_channels"])
        patch = 2 if dim is None else isqrt(dim // channels)
        if dim is not None and channels * patch**2 != dim:
            raise CheckpointError(
                f"{self.where}: latent_channels is {channels}, of which no square of the grid "
                f"makes {dim} channels; the model was trained on another autoencoder"
            )
        patch_size = patch * 2 ** (len(self.config["block_out_channels"]) - 1)
        try:
            return LatentSpaceConfig(
                kind="flux_vae",
                image_size=isqrt(num_tokens) * patch_size,
                patch_size=patch_size,
                tower=self.config,
            )
        except ValueError as error:
            raise CheckpointError(f"{self.where}: {error}") from None


def read_vae(directory: Path) -> VAESource:
    """Return the autoencoder in a folder, or in its subfolder ``vae``.

    Raises:
        CheckpointError: A file is missing or corrupt, or the architecture is another.
    """
    if (directory / FOLDER / "config.json").is_file():
        directory = directory / FOLDER
    path = directory / "config.json"
    tree = read_json(path)
    if tree.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise CheckpointError(
            f"{path}: _class_name must be 'AutoencoderKL', got {tree['_class_name']!r}"
        )
    config = {key: value for key, value in tree.items() if not key.startswith("_")}
    if unknown := [key for key in config if key not in _SETTINGS]:
        raise CheckpointError(f"{path}: an AutoencoderKL has no {', '.join(unknown)}")
    for key in ("latent_channels", "block_out_channels", "scaling_factor"):
        if key not in config:
            raise CheckpointError(f"{path} lacks {key}; it describes no AutoencoderKL")
    if config.get("latents_mean") or config.get("latents_std"):
        raise CheckpointError(f"{path}: latents_mean and latents_std cannot be read")
    return VAESource(config, TensorFolder.open(directory, names=_FILES), path)
