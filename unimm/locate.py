"""Find a model: the one shipped with the package, a directory, or a repository on the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from unimm.errors import CheckpointError

DEFAULT_MODEL = Path(__file__).parent / "models" / "scenes-small"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.bin", "README.md", "*.txt", "*.model")


def locate_model(name: str | Path | None, *, patterns: Sequence[str] = _FILES) -> Path:
    """Return the local directory of a model, downloaded from the hub if need be.

    Args:
        name: A directory or an id such as ``owner/name``; None for the shipped model.
        patterns: Of the files to download.

    Raises:
        CheckpointError: There is no such model, or it cannot be downloaded.
    """
    if name is None:
        if not DEFAULT_MODEL.is_dir():
            raise CheckpointError(
                f"this installation has no model in {DEFAULT_MODEL}; name a directory or hub id"
            )
        return DEFAULT_MODEL
    directory = Path(name)
    if directory.is_dir():
        return directory
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"there is no model directory {name}; a model on the hub has an id like owner/name"
        )
    return _download(name, patterns)


def _download(repository: str, patterns: Sequence[str]) -> Path:
    cache = constants.HF_HUB_CACHE
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no directory {repository} here and no model {repository} on the hub"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot download {repository} and it is not in the cache folder {cache}: {reason}; "
            f"connect to the network, or copy the model's directory here and name that"
        ) from error
