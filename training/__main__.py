"""The command line: `python -m training --tweets FILE --output DIR` trains; fetch, evaluate, publish are
commands.

Exit status 0, or 2 with one line on standard error, or 130 when interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from training.errors import TrainingError
from training.work_folder import work_path

COMMANDS = {
    "fetch": "get the newest tweets of a user through the API",
    "evaluate": "measure how well a model writes a user's tweets",
    "publish": "upload a checkpoint to the hub",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in COMMANDS:
            from training.options import invoke

            command = import_module(f"training.{argv[0]}").run
            invoke(command, argv[1:], prog=f"python -m training {argv[0]}")
        else:
            train(argv)
    except TrainingError as error:
        return _fail(str(error))
    except typer.TyperException as error:  # a wrong use
        return _fail(error.format_message())
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except (typer.Abort, KeyboardInterrupt) as interrupt:
        print(f"interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return 130
    return 0


def train(argv: Sequence[str]) -> None:
    """Make a checkpoint out of tweets.

    Raises:
        TrainingError: one of its kinds, for whatever the options or files do not allow.
        KeyboardInterrupt: with a text that says how to go on, where something was saved.
    """
    from training.arguments import Job, parse_job
    from training.job import run
    from training.options import invoke

    commands = "\n\n".join(f"{name}: {text}" for name, text in COMMANDS.items())
    epilog = f"Commands, each with a --help of its own:\n\n{commands}"
    job = invoke(parse_job, argv, prog="python -m training", epilog=epilog)
    if not isinstance(job, Job):  # it has shown its help
        return
    try:
        run(job)
    except KeyboardInterrupt as interrupt:
        if work_path(job.output).exists():
            raise KeyboardInterrupt("what was trained is kept, --resume goes on with it") from interrupt
        raise
    except OSError as error:
        if work_path(job.output).exists():
            reason = f"{error.strerror or error}; what was trained is kept, --resume goes on with it"
            raise OSError(error.errno, reason, error.filename) from error
        raise


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
