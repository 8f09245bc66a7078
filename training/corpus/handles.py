"""Whose tweets are given: handles, names and files, checked before a file is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingError

MAX_USERS = 20
_HANDLE = re.compile(r"[A-Za-z0-9_-]{1,50}")


@dataclass(frozen=True, kw_only=True)
class UserFiles:
    """One person's handle, display name and files of tweets.

    Raises:
        TrainingError: the handle is not 1 to 50 letters, digits, underscores and hyphens.
    """

    handle: str
    name: str | None
    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        check_handle(self.handle)


def check_handle(handle: str) -> str:
    """Return the handle, without `@`: 1 to 50 letters, digits, underscores and hyphens.

    Raises:
        TrainingError: it is anything else.

    >>> check_handle("goose_lantern")
    'goose_lantern'
    """
    if not _HANDLE.fullmatch(handle):
        raise TrainingError(
            f"handle {handle!r} is not 1 to 50 letters, digits, underscores or hyphens (without @)"
        )
    return handle


def check_users(users: Sequence[UserFiles]) -> list[UserFiles]:
    """Return the users by handle, as huggingtweets joins them.

    Raises:
        TrainingError: a handle twice, none, or more than 20.
    """
    handles = [user.handle.lower() for user in users]
    for handle in handles:
        if handles.count(handle) > 1:
            raise TrainingError(f"handle {handle!r} is given twice")
    if not 1 <= len(users) <= MAX_USERS:
        raise TrainingError(f"{len(users)} users are given, expected 1 to {MAX_USERS}")
    return sorted(users, key=lambda user: user.handle.lower())
