"""The directory of a run: whether it can be written, and what to say when it no longer can."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimm.errors import OutputError, UnimmError, UserError
from unimm.files import NO_SPACE, error_number

_TOO_LARGE = (*NO_SPACE, errno.EFBIG)
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
    except Exception as error:
        number = error_number(error)
        if number not in _TOO_LARGE + _REFUSED:
            raise
        reason = "the disk is full" if number in _TOO_LARGE else os.strerror(number).lower()
        raise OutputError(
            f"cannot write into {run_dir}: {reason}; mend that and give the same command again, "
            f"it goes on from the last checkpoint"
        ) from error
