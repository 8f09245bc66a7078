"""Trackers that write to this machine: TensorBoard and MLflow. None is loaded before it starts."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

from training.tracking.run import TrackedRun, values


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

        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._writer = SummaryWriter(str(self._folder))
        self._writer.add_text("config", _as_table(self._config))

    def log(self, entry: Mapping[str, float]) -> None:
        """Record the values of a step."""
        for name, value in values(entry).items():
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
        for name, value in values(entry).items():
            self._client.log_metric(self._id, name, value, step=int(entry["step"]))

    def log_model(self, training: Mapping[str, Any]) -> None:
        """Record training.json as tags; the weights stay where they are."""
        for name, value in _flat(training).items():
            self._client.set_tag(self._id, f"training.{name}", str(value)[:500])

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._id:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _as_table(record: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in _flat(record).items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])
