"""Whose tweets a model learns: handles, files, and what reading and cleaning the files gave.

Layouts of files are `tweets`' matter, rules of cleaning `cleaning`'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.corpus.cleaning import CleanedTweets, CleaningRules, clean
from training.corpus.text_store import TextStore
from training.errors import HandleError, TrainingError
from training.tweets.reading import read_tweets

MAX_USERS = 20
_HANDLE = re.compile(r"[A-Za-z0-9_-]{1,50}")


@dataclass(frozen=True, kw_only=True)
class UserFiles:
    """One person's handle, display name and files of tweets.

    Raises:
        HandleError: the handle is not 1 to 50 letters, digits, underscores and hyphens.
    """

    handle: str
    name: str | None
    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        check_handle(self.handle)


@dataclass(frozen=True, kw_only=True)
class User:
    """One person's tweets, read and cleaned.

    Attributes:
        tweet_files: name and SHA-256 of each file.
    """

    handle: str
    name: str | None
    tweet_files: tuple[dict[str, str], ...]
    cleaned: CleanedTweets


def check_handle(handle: str) -> str:
    """Return the handle, without `@`: 1 to 50 letters, digits, underscores and hyphens.

    Raises:
        HandleError: it is anything else.

    >>> check_handle("goose_lantern")
    'goose_lantern'
    """
    if not _HANDLE.fullmatch(handle):
        raise HandleError(
            f"handle {handle!r} is not 1 to 50 letters, digits, underscores or hyphens (without @)"
        )
    return handle


def check_users(users: Sequence[UserFiles]) -> list[UserFiles]:
    """Return the users by handle, as huggingtweets joins them.

    Raises:
        HandleError: a handle twice, none, or more than 20.
    """
    handles = [user.handle.lower() for user in users]
    for handle in handles:
        if handles.count(handle) > 1:
            raise HandleError(f"handle {handle!r} is given twice")
    if not 1 <= len(users) <= MAX_USERS:
        raise HandleError(f"{len(users)} users are given, expected 1 to {MAX_USERS}")
    return sorted(users, key=lambda user: user.handle.lower())


def read_users(users: Sequence[UserFiles], rules: CleaningRules) -> list[User]:
    """Read and clean the tweets of each user into one store of texts.

    Raises:
        TrainingError: one of its kinds, for a file that cannot be used; among several users, it names whose.
    """
    store = TextStore()
    read = []
    for user in users:
        try:
            cleaned = clean(read_tweets(user.paths, handle=user.handle), rules, store)
        except TrainingError as error:
            if len(users) == 1:
                raise
            raise type(error)(f"@{user.handle}: {error}") from error
        files = tuple(file_record(path) for path in user.paths)
        read.append(User(handle=user.handle, name=user.name, tweet_files=files, cleaned=cleaned))
    return read


def file_record(path: Path) -> dict[str, str]:
    """Return the name, without its folder, and the SHA-256 of a file; of a folder, of its files' hashes."""
    name = path.name.encode(errors="replace").decode()  # a name may hold bytes that are no UTF-8
    if not path.is_dir():
        return {"name": name, "sha256": _file_digest(path).hex()}
    parts = sorted(part for part in path.rglob("*") if part.is_file())
    return {"name": name, "sha256": hashlib.sha256(b"".join(map(_file_digest, parts))).hexdigest()}


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
