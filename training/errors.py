"""Every error that this package raises on purpose; each message says what to change."""

from __future__ import annotations


class TrainingError(ValueError):
    """What the caller gave cannot become a checkpoint."""


class TweetFileError(TrainingError):
    """A tweet file cannot be used; the message starts with its path."""


class MissingTweetFileError(TweetFileError):
    """There is no such file, or it cannot be opened."""


class NotATweetArchiveError(TweetFileError):
    """The file has none of the known formats, or is broken; the message says what was expected and found."""


class EmptyTweetArchiveError(TweetFileError):
    """The files are well formed and hold no tweet."""


class NotEnoughTextError(TrainingError):
    """The kept tweets are too few characters to learn from."""


class HandleError(TrainingError):
    """The handle is not one that can be a user name."""


class HyperParameterError(TrainingError):
    """A hyper-parameter is out of its range."""


class BaseModelError(TrainingError):
    """The base model cannot be loaded, or is not a GPT-2."""


class OutputFolderError(TrainingError):
    """The checkpoint cannot be written where it was asked for."""


class DivergedError(TrainingError):
    """The loss became infinite or not a number: nothing worth keeping was learned."""
