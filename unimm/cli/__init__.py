"""The command line: ``unimm COMMAND``.

Exit status: 0 done, 1 failed, 2 the user's mistake (one line on stderr), 130 interrupted.
torch and transformers are imported inside the commands, so that help is quick.
"""

import sys
from collections.abc import Sequence

import typer

from unimm.cli.app import app
from unimm.cli.output import report_error
from unimm.errors import UnimmError, UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; a bug's exception passes through."""
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
    except (KeyboardInterrupt, typer.Abort):
        report_error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output left, as `head` does; a later flush must not complain again.
        sys.stdout = sys.stderr
        return 1
    return status if isinstance(status, int) else 0
