"""Find the parts that a released model leaves to other repositories: its tower and its decoder."""

from collections.abc import Sequence
from pathlib import Path

from unimm.errors import CheckpointError
from unimm.locate import locate_model

DECODERS = {
    "siglip2": "nyu-visionx/siglip2_decoder",
    "dinov2": "nyu-visionx/webssl300m_decoder",
}
"""The released decoder of each kind of latents that Scale-RAE draws."""

PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "README.md")
"""Files of a released model or part."""


def find_part(
    directory: Path,
    given: str | Path | None,
    *,
    folder: str,
    repository: str,
    option: str,
    patterns: Sequence[str] = PATTERNS,
) -> Path:
    """Return the folder of a part.

    It is, in this order: what the caller names; a subfolder of the model; a folder beside the
    model that is called as the repository; the repository itself, from the cache or the hub.

    Args:
        directory: The model's folder.
        given: A folder or hub id; None to look for it.
        folder: The subfolder's name.
        repository: Hub id.
        option: How the command line calls it, for the message.
        patterns: Of the files to download.

    Raises:
        CheckpointError: It is nowhere.
    """
    if given is not None:
        return locate_model(given, patterns=patterns)
    beside = directory.absolute().parent / repository.rpartition("/")[2]
    for candidate in (directory / folder, beside):
        if candidate.is_dir():
            return candidate
    try:
        return locate_model(repository, patterns=patterns)
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has no folder {folder}, there is no {beside}, and {error}; "
            f"or convert the model with --{option} FOLDER"
        ) from None
