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


class CleaningRuleError(TrainingError):
    """A cleaning rule is out of its range."""


class ResumeError(TrainingError):
    """An interrupted run is in the way, or cannot be gone on with."""


class TrackerError(TrainingError):
    """A tracker is not known, or its packages are not installed."""


class SweepError(TrainingError):
    """A sweep cannot be run, gone on with, or found nothing."""


class NotTheirTweetsError(TweetFileError):
    """The files hold tweets, and all of them name another author than the handle."""


class FetchError(TrainingError):
    """The API cannot be called, or answers what it should not."""


class TokenError(FetchError):
    """There is no token for the API, or the API does not accept it."""


class NoSuchUserError(FetchError):
    """The user is unknown, suspended or protected."""


class RateLimitError(FetchError):
    """The API asks for a longer wait than is allowed."""


class EvaluationError(TrainingError):
    """A model cannot be evaluated as asked."""


class PublishError(TrainingError):
    """A checkpoint cannot be published."""
