"""Which trackers record a run, and one that hands everything on to all of them.

What each of them does is in `local` and in `wandb_runs`. None is loaded before it is needed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from training.errors import TrainingError
from training.tracking.local import MLflow, TensorBoard
from training.tracking.run import TrackedRun, Tracker

# What has to be installed, and what pip calls it.
PACKAGES: dict[str, dict[str, str]] = {
    "wandb": {"wandb": "wandb"},
    "tensorboard": {"tensorboard": "tensorboard"},
    # Its database is SQLAlchemy's, which mlflow-skinny does not bring.
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "none": {},
}
TRACKERS = tuple(PACKAGES)


def check_report_to(names: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers without `none`, each once.

    Raises:
        TrainingError: a name that is not known, `none` beside another, or a package that is not installed.

    >>> check_report_to(["none"])
    ()
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in PACKAGES:
            raise TrainingError(f"tracker {name!r} is not known, expected some of {', '.join(TRACKERS)}")
        missing = [pip for package, pip in PACKAGES[name].items() if find_spec(package) is None]
        if missing:
            raise TrainingError(
                f"--report-to {name} needs packages that are not installed: pip install {' '.join(missing)}"
            )
    if "none" in chosen and len(chosen) > 1:
        raise TrainingError(f"--report-to none goes without {' and '.join(n for n in chosen if n != 'none')}")
    return tuple(name for name in chosen if name != "none")


@dataclass
class Trackers:
    """Hands everything to several trackers. One that fails is left out from then on, with a warning.

    Attributes:
        links: addresses of what was recorded online, by name (`preprocess`, `train`); empty offline.
    """

    links: dict[str, str] = field(default_factory=dict)
    _active: dict[str, Tracker] = field(default_factory=dict)

    def add(self, name: str, tracker: Tracker) -> None:
        """Start a tracker."""
        self._active[name] = tracker
        self._each(lambda tracker: tracker.start(), [name])

    def log(self, entry: Mapping[str, float]) -> None:
        """Record an entry of metrics.jsonl; `step` grows from one to the next, or is the same."""
        self._each(lambda tracker: tracker.log(entry))

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Record the checkpoint, which has all its files, and its training.json."""
        self._each(lambda tracker: tracker.log_model(training))

    def close(self, *, failed: bool) -> None:
        """End all of them."""
        self._each(lambda tracker: tracker.close(failed=failed))

    def _each(self, act: Callable[[Tracker], None], names: Sequence[str] | None = None) -> None:
        for name in list(self._active) if names is None else names:
            tracker = self._active[name]
            try:
                act(tracker)
            except tracker.failures as error:
                del self._active[name]
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"warning: {name} stops recording, training goes on: {reason}", file=sys.stderr)
                with suppress(*tracker.failures):
                    tracker.close(failed=True)


@contextmanager
def tracked(report_to: Sequence[str], run: TrackedRun) -> Iterator[Trackers]:
    """Record a run while the block runs; for the main process alone.

    A block that raises ends the records as failed. A later start with the same folder goes on with the same
    runs of Weights & Biases, and replaces what TensorBoard and a local MLflow have.

    Args:
        report_to: from `check_report_to`.
        run: what is known before training.
    """
    trackers = Trackers()
    with tempfile.TemporaryDirectory() as caches, _environment(caches):
        failed = True
        try:
            for name in report_to:
                trackers.add(name, _tracker(name, run, trackers))
            yield trackers
            failed = False
        finally:
            trackers.close(failed=failed)


def _tracker(name: str, run: TrackedRun, trackers: Trackers) -> Tracker:
    if name == "wandb":
        from training.tracking.wandb_runs import WandbRuns

        return WandbRuns(run, links=trackers.links)
    return TensorBoard(run) if name == "tensorboard" else MLflow(run)


@contextmanager
def _environment(caches: str) -> Iterator[None]:
    """Keep trackers out of the home folder, and silent; what the user set stays."""
    wanted = {
        "WANDB_CACHE_DIR": caches,
        "WANDB_DATA_DIR": caches,
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
