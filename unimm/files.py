"""Write files and directories so that a reader never sees half of one."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from unimm.errors import OutputError, UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` when the block ends without error.

    Raises:
        OutputError: The file cannot be written; what was there before stays.
    """
    partial: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        ) as file:
            partial = Path(file.name)
            yield cast("BinaryIO", file)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException as error:
        _discard(partial)
        if isinstance(error, OSError) or error_number(error):
            raise _output_error(path, error) from error
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory that takes the place of ``path`` when the block ends without error.

    An existing directory at ``path`` stays whole until then and is deleted afterwards.

    Raises:
        OutputError: The directory cannot be written; what was there before stays.
    """
    partial: Path | None = None
    try:
        partial = Path(
            tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        )
        yield partial
        _give_usual_modes(partial)
        _replace_directory(partial, path)
    except BaseException as error:
        _discard(partial)
        if isinstance(error, OSError) or error_number(error):
            raise _output_error(path, error) from error
        raise


def check_writable(path: Path) -> None:
    """Check, before the work is done, that a file can be written at ``path``; write nothing.

    Raises:
        UserError: The folder does not exist or refuses new files, or the path is a folder itself.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.exists():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason.lower()}") from None


def check_new_directory(path: Path) -> None:
    """Check, before the work is done, that ``path`` does not exist and its folder does.

    Raises:
        UserError: Otherwise.
    """
    if path.exists():
        raise UserError(f"{path} exists; name a directory that does not")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}; create it first")


def _give_usual_modes(directory: Path) -> None:
    """Let others read what the umask lets them: safetensors writes for the owner alone."""
    mask = _umask()
    for path in (directory, *directory.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _replace_directory(new: Path, path: Path) -> None:
    """Move ``new`` to ``path``; directories cannot be swapped in one step on every system."""
    if not path.exists():
        new.replace(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
    path.replace(old)
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old)


def _discard(partial: Path | None) -> None:
    if partial is None:
        return
    with suppress(OSError):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def error_number(error: BaseException) -> int:
    """Return the system's number of an error, 0 where it is not one of the system's.

    Libraries written in Rust, such as safetensors and tokenizers, give it in words alone.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0


def _output_error(path: Path, error: BaseException) -> OutputError:
    if isinstance(error, OutputError):
        return error
    number = error_number(error)
    if number in NO_SPACE:
        return OutputError(f"cannot write {path}: the disk is full; nothing was changed")
    return OutputError(f"cannot write {path}: {os.strerror(number) if number else error}")


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
