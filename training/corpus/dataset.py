"""Which tweets are trained on and which are set aside, and in which order the training file has them.

Orders are arrays of indices into a store of texts: no text is copied, whatever the number of epochs. Token
ids live in `token_blocks`, reading and cleaning in `users`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.corpus.cleaning import CleanedTweets, Texts
from training.corpus.text_store import TextStore
from training.errors import HyperParameterError, TrainingError

END_OF_TEXT = "<|endoftext|>"
MIN_CHARACTERS = 6_000
ADVISED_CHARACTERS = 40_000
_SPLIT, _EPOCH, _BALANCE = range(3)  # what random numbers are drawn for


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What one run learns from and is judged on.

    Attributes:
        training: tweets to learn from, for each user.
        evaluation: tweets set aside, for each user; all empty where nothing is.
        repeats: for each user, how often an epoch has each training tweet, 1 for the user with most
        characters. order: the training file: indices of its tweets in the store, epoch after epoch.
        epochs: how many epochs the file has.
        seed: made the split and the order.
        warnings: what a user should know.
    """

    training: tuple[Texts, ...]
    evaluation: tuple[Texts, ...]
    repeats: tuple[float, ...]
    order: NDArray[np.int64]
    epochs: int
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def store(self) -> TextStore:
        """Where the texts are."""
        return self.training[0].store

    @property
    def num_training(self) -> int:
        """Distinct tweets to learn from."""
        return sum(map(len, self.training))

    @property
    def num_evaluation(self) -> int:
        """Tweets set aside."""
        return sum(map(len, self.evaluation))

    @property
    def evaluation_order(self) -> NDArray[np.int64]:
        """Indices in the store of the tweets set aside, user after user."""
        return np.concatenate([texts.indices for texts in self.evaluation])

    def num_characters(self) -> int:
        """Return the characters of the training file, with every `<|endoftext|>`."""
        separators = len(END_OF_TEXT) * (len(self.order) + 1)
        return int(self.store.lengths[self.order].sum(dtype=np.int64)) + separators

    def write(self, path: Path) -> None:
        """Write the training file: every tweet of every epoch, `<|endoftext|>` before, between and after."""
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(END_OF_TEXT)
            for text in Texts(self.store, self.order):
                file.write(text + END_OF_TEXT)


def make_dataset(users: Sequence[CleanedTweets], *, epochs: int, eval_fraction: float, seed: int) -> Dataset:
    """Set tweets of each user aside for evaluation and lay out the others in epochs.

    An epoch has all training tweets of all users, mixed. Where one user has fewer characters than another,
    theirs are repeated until they have as many.

    Args:
        users: the kept tweets of each, all in one store.
        epochs: how often the file has each training tweet, ≥ 1.
        eval_fraction: the part of the tweets set aside, 0 to 0.5; 0 evaluates nothing.
        seed: makes the split and the order.

    Raises:
        TrainingError: fewer than 6,000 characters of a user.
        HyperParameterError: `epochs` or `eval_fraction` out of range.
    """
    if epochs < 1:
        raise HyperParameterError(f"epochs is {epochs}, expected 1 or more")
    warnings = [warning for user in users if (warning := check_size(user))]
    splits = [
        split(user.kept, fraction=eval_fraction, seed=seed, user=number) for number, user in enumerate(users)
    ]
    training = [training for training, _ in splits]
    lengths = users[0].kept.store.lengths
    characters = [int(lengths[texts.indices].sum(dtype=np.int64)) for texts in training]
    return Dataset(
        training=tuple(training),
        evaluation=tuple(evaluation for _, evaluation in splits),
        repeats=tuple(max(characters) / number for number in characters),
        order=np.concatenate([_epoch(training, lengths, epoch, seed) for epoch in range(epochs)]),
        epochs=epochs,
        seed=seed,
        warnings=tuple(warnings),
    )


def check_size(user: CleanedTweets) -> str | None:
    """Return a warning where the kept tweets, joined, are under 40,000 characters, and None otherwise.

    Raises:
        TrainingError: they are under 6,000 characters; the message names the counts.
    """
    lengths = user.kept.store.lengths[user.kept.indices]
    num_characters = int(lengths.sum(dtype=np.int64)) + len(END_OF_TEXT) * max(0, len(lengths) - 1)
    counts = user.counts
    if num_characters < MIN_CHARACTERS:
        raise TrainingError(
            f"the tweets are {num_characters:,} characters and at least {MIN_CHARACTERS:,} are needed: "
            f"{counts.downloaded:,} downloaded, {counts.retweets:,} retweets, {counts.short:,} short, "
            + (f"{counts.replies:,} replies, " if counts.replies else "")
            + f"{counts.kept:,} kept"
        )
    if num_characters < ADVISED_CHARACTERS:
        return (
            f"the tweets are only {num_characters:,} characters; "
            f"a model learns better from {ADVISED_CHARACTERS:,} or more"
        )
    return None


def split(texts: Texts, *, fraction: float, seed: int, user: int = 0) -> tuple[Texts, Texts]:
    """Draw tweets for evaluation and return (training, evaluation), each in archive order.

    Args:
        texts: kept tweets of one user.
        fraction: the part for evaluation, 0 to 0.5; over 0, at least one tweet.
        seed: of the draw.
        user: position among several users.

    Raises:
        HyperParameterError: `fraction` is not in 0 to 0.5.
    """
    if not 0 <= fraction <= 0.5:
        raise HyperParameterError(f"eval_fraction is {fraction}, expected 0 to 0.5")
    num_evaluation = max(1, round(len(texts) * fraction)) if fraction else 0
    shuffled = _permutation(len(texts), seed, _SPLIT, user)
    set_aside = np.zeros(len(texts), np.bool_)
    set_aside[shuffled[:num_evaluation]] = True
    return Texts(texts.store, texts.indices[~set_aside]), Texts(texts.store, texts.indices[set_aside])


def sha256_of(texts: Sequence[Texts]) -> str:
    """Return the SHA-256 of all texts, `<|endoftext|>` after each, as hexadecimal digits."""
    digest = hashlib.sha256()
    for text in _chain(texts):
        digest.update((text + END_OF_TEXT).encode())
    return digest.hexdigest()


def _chain(texts: Sequence[Texts]) -> Iterator[str]:
    return (text for part in texts for text in part)


def _epoch(
    training: Sequence[Texts], lengths: NDArray[np.uint32], epoch: int, seed: int
) -> NDArray[np.int64]:
    """Return one epoch's tweets of all users, balanced by characters and mixed."""
    characters = [lengths[texts.indices].astype(np.int64) for texts in training]
    most = max(int(of_user.sum()) for of_user in characters)
    parts: list[NDArray[np.int64]] = []
    for user, (texts, of_user) in enumerate(zip(training, characters, strict=True)):
        times, rest = divmod(most, int(of_user.sum()))
        parts += [texts.indices] * times
        if rest:
            drawn = _permutation(len(texts), seed, _BALANCE, user, epoch)
            num_drawn = int(np.searchsorted(of_user[drawn].cumsum(), rest)) + 1
            parts.append(texts.indices[drawn[:num_drawn]])
    tweets = np.concatenate(parts)
    return tweets[_permutation(len(tweets), seed, _EPOCH, epoch)]


def _permutation(length: int, *seeds: int) -> NDArray[np.int64]:
    # NumPy guarantees the stream of a bit generator, not what Generator.permutation makes of it.
    draws = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(length)
    return draws.argsort(kind="stable")
