"""The command line: ``unimm COMMAND``.

Exit status: 0 done, 1 failed, 2 the user's mistake (one line on stderr), 130 interrupted.
torch and transformers are imported inside the commands, so that help is quick.
"""

import dis
import sys
from collections.abc import Sequence

import typer

from unimm.cli.app import app
from unimm.cli.output import report_error
from unimm.errors import UnimmError, UserError

_APPLICATIONS = ("training", "eval", "serving")
OUR_PACKAGES = {"metaquery", "unimm", *_APPLICATIONS, *(f"unimm_{name}" for name in _APPLICATIONS)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; a bug's exception passes through.

    In our packages a ValueError means the caller's mistake; one from another library is a bug.
    """
    try:
        status = app(args=list(arguments), prog_name="unimm", standalone_mode=False)
    except typer.TyperException as error:
        report_error(error.format_message())
        return error.exit_code
    except UserError as error:
        report_error(str(error))
        return 2
    except UnimmError as error:
        report_error(str(error))
        return 1
    except ValueError as error:
        if not raised_by_us(error):
            raise
        report_error(str(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        report_error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output left, as `head` does; a later flush must not complain again.
        sys.stdout = sys.stderr
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        report_error(
            f"not enough memory: {error}; lower --best-of, use --dtype bfloat16, or close programs"
        )
        return 2
    return status if isinstance(status, int) else 0


def raised_by_us(error: BaseException) -> bool:
    """Tell whether a package of ours raised an exception, not a library or a built-in it called."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    package = str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return package in OUR_PACKAGES and dis.opname[instruction] == "RAISE_VARARGS"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out; torch has no type of its own on CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
