"""What a tracker is told of a run, and what every tracker can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FOLDERS = ("wandb", "tensorboard", "mlflow")  # of the checkpoint, for the trackers of these names


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What trackers are told of a run before it trains; neither paths nor secrets reach them but as noted.

    Attributes:
        folder: the checkpoint in the making; every tracker has a folder of its name in it.
        output: where `folder` will lie when all is done.
        handle: handles joined by `-`.
        tweet_files: as given: files and folders.
        read_tweets: gives the tweets of one of these as JSON objects.
        write_dataset: writes the training text to a path.
        dataset: metadata of the dataset: handle, seed, epochs, version and what else there is.
        base: a hub id, a folder or `scratch`; of a folder its name and its files' hashes are recorded.
        config: plain JSON values that decide about the run.
    """

    folder: Path
    output: Path
    handle: str
    tweet_files: tuple[Path, ...]
    read_tweets: Callable[[Path], Iterable[Mapping[str, Any]]]
    write_dataset: Callable[[Path], None]
    dataset: Mapping[str, Any]
    base: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """One service that records a run; methods are called in this order, `log` many times."""

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What it raises where the world fails it: network, disk, its own service."""

    def start(self) -> None:
        """Begin; what an earlier, interrupted start left is gone on with or replaced."""

    def log(self, entry: Mapping[str, float]) -> None:
        """Record an entry of metrics.jsonl."""

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Record the finished checkpoint and its training.json."""

    def close(self, *, failed: bool) -> None:
        """End, and leave nothing running."""


def values(entry: Mapping[str, float]) -> dict[str, float]:
    """Return an entry of metrics.jsonl without its step."""
    return {name: value for name, value in entry.items() if name != "step"}
