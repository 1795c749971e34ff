"""Find a source's files, and name in one line what is wrong with them."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from unimm.errors import UserError


def find_files(path: Path, suffixes: Sequence[str], *, source: str) -> list[Path]:
    """Return a file, or all files in a folder that end so, by name.

    Raises:
        UserError: There is none, or one is empty.
    """
    wanted = " or ".join(suffixes)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(tuple(suffixes)))
        if not files:
            raise UserError(f"{source}: the folder {path} holds no {wanted} file")
    elif path.name.endswith(tuple(suffixes)):
        files = [path]
    else:
        raise UserError(f"{source}: {path} must be a {wanted} file or a folder of them")
    check_files(files, source=source)
    return files


def check_files(files: Sequence[Path], *, source: str) -> None:
    """Raise UserError unless all files exist and hold something."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{source}: there is no file {file}")
        if not file.stat().st_size:
            raise UserError(f"{source}: {file} is empty")


def read_manifest(path: Path, *, source: str) -> list[Path]:
    """Return the tars that a manifest ``{"dataset_name": ..., "tars": [...]}`` lists.

    Relative names start from the manifest's folder.

    Raises:
        UserError: It cannot be read, has another layout, or lists what is not there.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{source}: {path} is no JSON: {error}") from None
    tars = tree.get("tars") if isinstance(tree, dict) else None
    if not isinstance(tars, list) or not tars or not all(isinstance(tar, str) for tar in tars):
        raise UserError(f'{source}: {path} must be {{"dataset_name": ..., "tars": ["a.tar", ...]}}')
    remote = next((tar for tar in tars if "://" in tar), None)
    if remote is not None:
        raise UserError(
            f"{source}: {path} lists {remote}; samples are read by position, so copy the tars to "
            f"a disk or mount first"
        )
    return [path.parent / tar for tar in tars]


def index_path(index_dir: Path, file: Path, suffix: str) -> Path:
    """Return where positions inside of a file are remembered: a changed file has another place."""
    status = file.stat()
    described = f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    digest = blake2b(described.encode(), digest_size=10).hexdigest()
    return index_dir / f"{file.stem}-{digest}{suffix}"
