"""Joins cleaned tweets into the text that a model is trained on, and cuts its token ids into blocks.

Pure functions of texts and integers: files are written by `checkpoint`, tokenizers live in `finetune`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.cleaning import CleanedTweets
from training.errors import HyperParameterError, NotEnoughTextError

END_OF_TEXT = "<|endoftext|>"
MIN_CHARACTERS = 6_000
ADVISED_CHARACTERS = 40_000


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What one run learns from and is judged on.

    `text` is the whole training file: every training tweet once per epoch. `evaluation_text` holds the tweets
    left out of it, once; it is empty where nothing was set aside. `seed` gave both the split and the order.
    """

    text: str
    evaluation_text: str
    num_training: int
    num_evaluation: int
    epochs: int
    seed: int
    warnings: tuple[str, ...] = ()


def make_dataset(cleaned: CleanedTweets, *, epochs: int, eval_fraction: float, seed: int) -> Dataset:
    """Set tweets aside for evaluation and lay out the others in epochs.

    Args:
        cleaned: the kept tweets and their counts.
        epochs: how often each training tweet occurs, ≥ 1.
        eval_fraction: the part of the tweets set aside, 0 to 0.5; 0 evaluates nothing.
        seed: makes the split and the order.

    Raises:
        NotEnoughTextError: fewer than 6,000 characters.
        HyperParameterError: `epochs` or `eval_fraction` out of range.
    """
    warning = check_size(cleaned)
    training, evaluation = split(cleaned.kept, fraction=eval_fraction, seed=seed)
    return Dataset(
        text=epochs_text(training, epochs=epochs, seed=seed),
        evaluation_text=epochs_text(evaluation, epochs=1, seed=seed) if evaluation else "",
        num_training=len(training),
        num_evaluation=len(evaluation),
        epochs=epochs,
        seed=seed,
        warnings=(warning,) if warning else (),
    )


def check_size(cleaned: CleanedTweets) -> str | None:
    """Return a warning where the kept tweets, joined, are under 40,000 characters, and None otherwise.

    Raises:
        NotEnoughTextError: they are under 6,000 characters; the message names the counts.
    """
    num_characters = len(END_OF_TEXT.join(cleaned.kept))
    counts = cleaned.counts
    if num_characters < MIN_CHARACTERS:
        raise NotEnoughTextError(
            f"the tweets are {num_characters:,} characters and at least {MIN_CHARACTERS:,} are needed: "
            f"{counts.downloaded:,} downloaded, {counts.retweets:,} retweets, {counts.short:,} short, "
            f"{counts.kept:,} kept"
        )
    if num_characters < ADVISED_CHARACTERS:
        return (
            f"the tweets are only {num_characters:,} characters; "
            f"a model learns better from {ADVISED_CHARACTERS:,} or more"
        )
    return None


def split(tweets: Sequence[str], *, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Draw tweets for evaluation and return (training, evaluation); with a fraction over 0, at least one.

    Raises:
        HyperParameterError: `fraction` is not in 0 to 0.5.

    >>> training, evaluation = split([str(i) for i in range(20)], fraction=0.1, seed=1)
    >>> len(training), len(evaluation), sorted(training + evaluation, key=int) == [str(i) for i in range(20)]
    (18, 2, True)
    """
    if not 0 <= fraction <= 0.5:
        raise HyperParameterError(f"eval_fraction is {fraction}, expected 0 to 0.5")
    shuffled = list(tweets)
    random.Random(seed).shuffle(shuffled)
    num_evaluation = max(1, round(len(shuffled) * fraction)) if fraction else 0
    return shuffled[num_evaluation:], shuffled[:num_evaluation]


def epochs_text(tweets: Sequence[str], *, epochs: int, seed: int) -> str:
    """Write the tweets `epochs` times, each in a new order, with <|endoftext|> before, between and after.

    Raises:
        HyperParameterError: `epochs` is under 1.

    >>> epochs_text(["fog"], epochs=2, seed=0)
    '<|endoftext|>fog<|endoftext|>fog<|endoftext|>'
    """
    if epochs < 1:
        raise HyperParameterError(f"epochs is {epochs}, expected 1 or more")
    order = random.Random(seed)
    parts = [""]  # joined with the rest, it puts END_OF_TEXT at the start
    for _ in range(epochs):
        shuffled = list(tweets)
        order.shuffle(shuffled)
        parts += shuffled
    return END_OF_TEXT.join([*parts, ""])


def training_blocks(token_ids: Sequence[int], block_size: int) -> list[list[int]]:
    """Cut into blocks of exactly `block_size` tokens.

    The rest that does not fill a block is dropped: it is under one block of several epochs, and blocks of one
    length need neither padding nor a mask. Only a text shorter than one block stays as a single short block.

    >>> training_blocks([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4]]
    >>> training_blocks([1, 2, 3], 1024)
    [[1, 2, 3]]
    """
    num_full = len(token_ids) // block_size
    if num_full == 0:
        return [list(token_ids)]
    return [list(token_ids[i * block_size : (i + 1) * block_size]) for i in range(num_full)]


def evaluation_blocks(token_ids: Sequence[int], block_size: int) -> list[list[int]]:
    """Cut so that every token but the first is predicted exactly once, the last block being shorter.

    Neighbours share one token: the last of a block is the first, not predicted, of the next.

    >>> evaluation_blocks([1, 2, 3, 4, 5, 6], 3)
    [[1, 2, 3], [3, 4, 5], [5, 6]]
    """
    return [list(token_ids[i : i + block_size]) for i in range(0, len(token_ids) - 1, block_size - 1)]
