"""The directory of a run: whether it can be written, and what to say when it no longer can."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from unimm.errors import OutputError, UnimmError, UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def check_run_dir(run_dir: Path) -> None:
    """Check, before any work, that a run can write into its directory; write nothing.

    Raises:
        UserError: It cannot be created or refuses files.
    """
    try:
        folder = next(p for p in (run_dir.absolute(), *run_dir.absolute().parents) if p.exists())
        if folder.is_dir():
            with tempfile.TemporaryFile(dir=folder):
                return
        reason = f"{folder} is not a folder"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise UserError(
        f"cannot write run.output_dir {run_dir}: {reason}; choose another: run.output_dir=FOLDER"
    )


@contextmanager
def explained_write_errors(run_dir: Path) -> Iterator[None]:
    """Turn the system's errors of a full or closed disk into one that says how to go on.

    Raises:
        OutputError: A file of the run could not be written.
    """
    try:
        yield
    except UnimmError:
        raise
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in _NO_SPACE + _REFUSED:
            raise
        reason = "the disk is full" if number in _NO_SPACE else os.strerror(number).lower()
        raise OutputError(
            f"cannot write into {run_dir}: {reason}; mend that and give the same command again, "
            f"it goes on from the last checkpoint"
        ) from error


def _error_number(error: OSError | SafetensorError) -> int:
    """Return the system's number of an error; safetensors tells it in its message alone."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"os error (\d+)", str(error))
    return int(told[1]) if told else 0
