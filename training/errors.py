"""Every error that this package raises on purpose; each message says what to change."""

from __future__ import annotations


class TrainingError(ValueError):
    """What the caller gave cannot become a checkpoint, or a checkpoint what was asked of it."""


class TweetFileError(TrainingError):
    """A tweet file is missing, broken, empty or someone else's; the message starts with its path."""


class HyperParameterError(TrainingError):
    """An option of training is out of its range, or does not go with another."""


class BaseModelError(TrainingError):
    """The base model cannot be loaded, or is not a GPT-2."""


class OutputFolderError(TrainingError):
    """The output is in use, holds something else, or an interrupted run is in its way."""


class DivergedError(TrainingError):
    """The loss became infinite or not a number: nothing worth keeping was learned."""


class FetchError(TrainingError):
    """The API cannot be called, refuses the token or the user, or answers what it should not."""


class RateLimitError(FetchError):
    """The API asks for a longer wait than is allowed; a later call goes on."""
