"""Latents on disk: one safetensors file that names the latent space it belongs to.

Latents mean nothing outside the space that made them, so a file of another space is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from jaxtyping import Float
from torch import Tensor

from unimm.errors import LatentsError
from unimm.files import atomic_write

FORMAT = "unimm-latents-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsFile:
    """Latents and where they come from.

    Attributes:
        path: The file.
        latents: K pictures' standardised latents, row-major tokens.
        space: The identifier of their latent space.
        notes: Free text fields, such as the prompt and the seed.
    """

    path: Path
    latents: Float[Tensor, "K N D"]
    space: str
    notes: Mapping[str, str]

    def in_space(self, space: str) -> Float[Tensor, "K N D"]:
        """Return the latents if they belong to the given latent space.

        Raises:
            LatentsError: They belong to another.
        """
        if self.space != space:
            raise LatentsError(
                f"{self.path} belongs to the latent space {self.space}, this model's is {space}; "
                "use the model that made it"
            )
        return self.latents


def save_latents(
    path: Path,
    latents: Float[Tensor, "K N D"],
    *,
    space: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write latents, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    content = safetensors.torch.save(
        {"latents": latents.detach().cpu().contiguous()},
        metadata={**(notes or {}), "format": FORMAT, "space": space},
    )
    with atomic_write(path) as file:
        file.write(content)


def load_latents(path: Path) -> LatentsFile:
    """Read latents and what is known of them.

    Raises:
        LatentsError: The file is missing, damaged, or holds no latents.
    """
    if not path.is_file():
        raise LatentsError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            latents = file.get_tensor("latents") if "latents" in file.keys() else None  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise LatentsError(f"{path} is no safetensors file or is damaged: {error}") from None
    found = notes.pop("space", None)
    if latents is None or found is None or notes.pop("format", None) != FORMAT or latents.ndim != 3:
        raise LatentsError(
            f"{path} holds no latents; write some with: unimm generate --save-latents"
        )
    return LatentsFile(path=path, latents=latents, space=found, notes=notes)
