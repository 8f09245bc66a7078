"""Every error that this package raises on purpose; each message says what to change."""

from __future__ import annotations


class TrainingError(ValueError):
    """What the caller gave cannot become a checkpoint, or a checkpoint what was asked of it."""


class TweetFileError(TrainingError):
    """A tweet file cannot be used; the message starts with its path."""


class MissingTweetFileError(TweetFileError):
    """There is no such file, or it cannot be opened."""


class NotATweetArchiveError(TweetFileError):
    """The file has none of the known formats, or is broken; the message says what was expected and found."""


class EmptyTweetArchiveError(TweetFileError):
    """The files are well formed and hold no tweet."""


class NotTheirTweetsError(TweetFileError):
    """The files hold tweets, and all of them name another author than the handle."""


class CleaningRuleError(TrainingError):
    """A cleaning rule is out of its range."""


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
