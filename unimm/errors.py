"""Errors whose message is meant for a person: one line, with the value, the limit and the way out.

UnimmError                  the work failed; the command line exits with status 1
+-- OutputError             a result could not be written (also an OSError)
+-- UserError               the caller's mistake; exit status 2 (also a ValueError)
    +-- ConfigError         a configuration file or override is wrong
    +-- CheckpointError     a model directory is incomplete, corrupt or of another kind
    +-- ImageError          a file is no picture that can be read safely
    +-- LatentsError        a latents file is unreadable or of another latent space
    +-- MissingExtraError   an optional dependency is not installed
    +-- NotEnoughMemoryError  the work needs more memory than there is

Anything else that escapes is a bug and keeps its traceback.
"""


class UnimmError(Exception):
    """The work failed for a reason that a person can act on."""


class OutputError(UnimmError, OSError):
    """A result could not be written, for instance because the disk is full."""


class UserError(UnimmError, ValueError):
    """The caller asked for something that cannot be done."""


class ConfigError(UserError):
    """A configuration file or override is wrong; the message names the dotted path."""


class CheckpointError(UserError):
    """A model directory is incomplete, corrupt or of another kind."""


class ImageError(UserError):
    """A file is no picture, is truncated, or is too large to be opened safely."""


class LatentsError(UserError):
    """A latents file cannot be read or belongs to another latent space."""


class NotEnoughMemoryError(UserError):
    """The work needs more memory than there is; the message says how much."""


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of unimm that brings it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'unimm[{extra}]'"
        )
