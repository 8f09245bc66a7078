"""People's tweets, read and cleaned into one store of texts.

Layouts of files are `tweets`' matter, rules of cleaning `cleaning`'s, handles `handles`'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.corpus.cleaning import CleanedTweets, CleaningRules, clean
from training.corpus.handles import UserFiles
from training.corpus.text_store import TextStore
from training.errors import TrainingError
from training.tweets.reading import read_tweets


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
