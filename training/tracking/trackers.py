"""Who records a run beside the checkpoint's own files: Weights & Biases, TensorBoard, MLflow.

A tracker hears of what `metrics_log` writes; that of Weights & Biases is in `wandb_runs`. None is loaded
before it is needed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from training.errors import TrackerError

# What has to be installed, and what pip calls it.
PACKAGES: dict[str, dict[str, str]] = {
    "wandb": {"wandb": "wandb"},
    "tensorboard": {"tensorboard": "tensorboard"},
    # Its database is SQLAlchemy's, which mlflow-skinny does not bring.
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "none": {},
}
TRACKERS = tuple(PACKAGES)
FOLDERS = ("wandb", "tensorboard", "mlflow")  # of the checkpoint, for the trackers of these names


def check_report_to(names: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers without `none`, each once.

    Raises:
        TrackerError: a name that is not known, `none` beside another, or a package that is not installed.

    >>> check_report_to(["none"])
    ()
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in PACKAGES:
            raise TrackerError(f"tracker {name!r} is not known, expected some of {', '.join(TRACKERS)}")
        missing = [pip for package, pip in PACKAGES[name].items() if find_spec(package) is None]
        if missing:
            raise TrackerError(
                f"--report-to {name} needs packages that are not installed: pip install {' '.join(missing)}"
            )
    if "none" in chosen and len(chosen) > 1:
        raise TrackerError(f"--report-to none goes without {' and '.join(n for n in chosen if n != 'none')}")
    return tuple(name for name in chosen if name != "none")


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What trackers are told of a run before it trains; neither paths nor secrets reach them but as noted.

    Attributes:
        folder: the checkpoint in the making; every tracker has a folder of its name in it.
        output: where `folder` will lie when all is done.
        handle: handles joined by `-`.
        tweet_files: as given: files and folders.
        write_dataset: writes the training text to a path.
        dataset: metadata of the dataset: handle, seed, epochs, version and what else there is.
        base: a hub id, a folder or `scratch`; of a folder its name and its files' hashes are recorded.
        config: plain JSON values that decide about the run.
    """

    folder: Path
    output: Path
    handle: str
    tweet_files: tuple[Path, ...]
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


class TensorBoard:
    """Curves and configuration as an event file in `tensorboard/`."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder / "tensorboard"
        self._config = run.config
        self._writer: Any = None

    def start(self) -> None:
        """Begin a new event file: the whole run is logged at every start."""
        from torch.utils.tensorboard import SummaryWriter

        _empty(self._folder)
        self._writer = SummaryWriter(str(self._folder))
        self._writer.add_text("config", _as_table(self._config))

    def log(self, entry: Mapping[str, float]) -> None:
        """Record the values of a step."""
        for name, value in _values(entry).items():
            self._writer.add_scalar(name, value, int(entry["step"]))

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Record training.json."""
        self._writer.add_text("training", _as_table(training))

    def close(self, *, failed: bool) -> None:
        """Close the file, and drop the name of this machine from the file's."""
        if self._writer is not None:
            self._writer.close()
        for path in self._folder.glob("*tfevents*"):
            path.rename(self._folder / "events.out.tfevents.0")


class MLflow:
    """Curves and configuration in a database in `mlflow/`, or wherever MLFLOW_TRACKING_URI says."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._id = ""

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """Its own errors, which wrap those of network and database, and the disk's."""
        from mlflow.exceptions import MlflowException

        return (MlflowException, OSError)

    def start(self) -> None:
        """Begin a run: the whole run is logged at every start."""
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        local = uri is None
        if local:
            folder = self._run.folder / "mlflow"
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        with warnings.catch_warnings():  # some of its calls are deprecated in its own dependencies
            warnings.simplefilter("ignore", DeprecationWarning)
            self._client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", self._run.handle)
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                where = (self._run.output / "mlflow" / "artifacts").resolve().as_uri() if local else None
                number = self._client.create_experiment(name, artifact_location=where)
            else:
                number = experiment.experiment_id
            for earlier in self._client.search_runs([number]) if local else ():
                self._client.delete_run(earlier.info.run_id)
            self._id = self._client.create_run(number, run_name=self._run.handle).info.run_id
        for name, value in _flat(self._run.config).items():
            self._client.log_param(self._id, name, str(value)[:500])

    def log(self, entry: Mapping[str, float]) -> None:
        """Record the values of a step."""
        for name, value in _values(entry).items():
            self._client.log_metric(self._id, name, value, step=int(entry["step"]))

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Record training.json as tags; the weights stay where they are."""
        for name, value in _flat(training).items():
            self._client.set_tag(self._id, f"training.{name}", str(value)[:500])

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._id:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _values(entry: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if name != "step"}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _as_table(record: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in _flat(record).items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


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
