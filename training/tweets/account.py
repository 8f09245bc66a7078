"""Reads whose archive it is: the files in which archives of X and of Mastodon tell it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import TweetFileError
from training.tweets.archive_files import read_members

MAX_ACCOUNT_BYTES = 1 << 20
_ACCOUNT_FILES = re.compile(r"(?:^|/)(?:account\.js|user_details\.js|actor\.json)$")


class Account(NamedTuple):
    """Whose archive it is: user name without `@`, and display name, None where it is not told."""

    handle: str
    name: str | None


def read_account(path: Path) -> Account | None:
    """Read whose archive it is, from an archive's zip or folder; None for other files, and where none tells.

    Raises:
        TweetFileError: the file does not exist or cannot be opened.
        TweetFileError: the zip is broken, or the file that tells it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "account.js")
    ...     account = '{"account": {"username": "goose", "accountDisplayName": "Goose"}}'
    ...     _ = path.write_text(f"window.YTD.account.part0 = [{account}]")
    ...     read_account(Path(folder))
    Account(handle='goose', name='Goose')
    """
    for content in read_members(path, _ACCOUNT_FILES, MAX_ACCOUNT_BYTES):
        try:
            text = content.decode("utf-8-sig")
            record, _ = json.JSONDecoder().raw_decode(text, max(text.find("{"), 0))
        except (ValueError, RecursionError) as error:
            raise TweetFileError(f"{path}: its account file is broken ({error})") from error
        if isinstance(record, dict):
            record = record.get("account", record)
        if isinstance(record, dict):
            handle = _first_text(record, ("username", "screen_name", "preferredUsername"))
            if handle:
                return Account(handle, _first_text(record, ("accountDisplayName", "full_name", "name")))
    return None


def _first_text(record: dict[str, Any], fields: Sequence[str]) -> str | None:
    return next(
        (record[field] for field in fields if isinstance(record.get(field), str) and record[field]), None
    )
