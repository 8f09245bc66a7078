"""How a command of `python -m training` is called with options, and the options that say whose tweets there
are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from training.corpus.handles import UserFiles, check_users
from training.errors import TrainingError
from training.tweets.account import read_account

_SEVERAL = ("--tweets", "--report-to")  # options that take one value or more
_BETWEEN = "\0"  # no argument of a process has it


def invoke(command: Callable[..., Any], argv: Sequence[str], *, prog: str, epilog: str | None = None) -> Any:
    """Call a command with the options that the arguments give, and return what it returns.

    Args:
        command: its parameters are options and arguments; its docstring, up to `Raises`, is the help.
        argv: the arguments of the command line.
        prog: what the help calls the command.
        epilog: the end of the help.

    Raises:
        typer.TyperException: the arguments are not the command's.
        TrainingError: an option has no value; or what the command raises.
    """
    app = typer.Typer(add_completion=False)
    paragraphs = (inspect.getdoc(command) or "").partition("\n\nRaises:")[0].split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    settings = {"help_option_names": ["-h", "--help"]}
    app.command(help=text, epilog=epilog, context_settings=settings)(command)
    built = get_command(app)
    _check_values(built.params, argv)
    return built.main(_joined(argv), prog_name=prog, standalone_mode=False)


def _check_values(params: Sequence[Any], argv: Sequence[str]) -> None:
    """Raise where an option follows in place of a value: click takes the option for the value."""
    options = [param for param in params if param.param_type_name == "option"]
    names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    with_value = {name for option in options if not option.is_flag for name in option.opts}
    for option, value in pairwise(argv):
        if option in with_value and value in names:
            raise TrainingError(f"{option} needs a value, found {value}")


def _joined(argv: Sequence[str]) -> list[str]:
    """Return the arguments with all values of an option as one: click's options take no list.

    >>> _joined(["--tweets", "a", "b", "--handle", "c"])
    ['--tweets', 'a\\x00b', '--handle', 'c']
    """
    joined: list[str] = []
    for argument in argv:
        if len(joined) > 1 and joined[-2] in _SEVERAL and not argument.startswith("-"):
            joined[-1] += _BETWEEN + argument
        else:
            joined.append(argument)
    return joined


def several(joined: str) -> tuple[str, ...]:
    """Return the values of an option that takes one or more, as `invoke` hands them on."""
    return tuple(joined.split(_BETWEEN))


def field_option(owner: type, name: str, *flags: str, panel: str, default: object = None) -> Any:
    """Return the option of a dataclass's field, with the field's part of the docstring as help.

    Args:
        owner: the dataclass; its docstring's `Attributes` explain the field.
        name: the field.
        flags: where the option is not called as the field, or has no `--no-`.
        panel: the part of the help.
        default: shown where the function's own is None.
    """
    attributes = (inspect.getdoc(owner) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    described = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
    text = " ".join(described.get(name, "").split())  # nothing under `python -OO`
    kind = owner.__annotations__[name].partition(" ")[0]
    return typer.Option(
        *flags,
        help=text[:1].upper() + text[1:],
        metavar={"int": "N", "float": "X", "bool": None}.get(kind, "NAME"),
        rich_help_panel=panel,
        show_default=True if default is None else str(default),
    )


DATA = "Data"
TweetsOption = Annotated[
    list[Any] | None,
    typer.Option(
        metavar="FILE…",
        parser=lambda joined: tuple(map(Path, several(joined))),
        help="An archive (zip, folder or tweets.js), JSON, JSON lines, CSV, plain text, or an export of "
        "Mastodon or Bluesky; several are parts of one; once for each --handle.",
        rich_help_panel=DATA,
    ),
]
HandleOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Whose tweets they are, without @; several times for several people.",
        show_default="the archive's own",
        rich_help_panel=DATA,
    ),
]
NameOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="The display name, once for each --handle.", rich_help_panel=DATA),
]
AccountsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Instead of these: a folder with a HANDLE.* for each person.",
        rich_help_panel=DATA,
    ),
]


def parse_users(
    tweets: Sequence[Sequence[Path]] | None,
    handles: Sequence[str] | None,
    names: Sequence[str] | None,
    accounts: Path | None,
) -> tuple[UserFiles, ...]:
    """Return whose tweets the options name, by handle.

    Raises:
        TrainingError: options that do not go together, or a handle that is none.
        TweetFileError: an archive that was to tell its owner cannot be read.
    """
    return tuple(check_users(_users(tweets or [], handles or [], names or [], accounts)))


def _users(
    tweets: Sequence[Sequence[Path]], handles: Sequence[str], names: Sequence[str], accounts: Path | None
) -> list[UserFiles]:
    if accounts is not None:
        if tweets or handles or names:
            raise TrainingError("--accounts goes without --tweets, --handle and --name")
        if not accounts.is_dir():
            raise TrainingError(f"accounts {accounts} is not a folder")
        entries = sorted(path for path in accounts.iterdir() if not path.name.startswith("."))
        return [UserFiles(handle=path.stem, name=None, paths=(path,)) for path in entries]
    if not tweets:
        raise TrainingError("no tweets are given: --tweets FILE, or --accounts DIR")
    if not handles and len(tweets) == 1:
        account = read_account(tweets[0][0])
        if account is None:
            raise TrainingError(f"{tweets[0][0]} does not say whose tweets they are: give --handle NAME")
        name = names[0] if names else account.name
        return [UserFiles(handle=account.handle, name=name, paths=tuple(tweets[0]))]
    if len(handles) != len(tweets) or len(names) not in (0, len(handles)):
        raise TrainingError(
            f"{len(tweets)} --tweets, {len(handles)} --handle and {len(names)} --name are given; "
            "expected a --handle for each --tweets, and as many --name or none"
        )
    return [
        UserFiles(handle=handle, name=name, paths=tuple(paths))
        for handle, name, paths in zip_longest(handles, names, tweets)
    ]
