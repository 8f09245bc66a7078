"""What trackers are told, read back from what the real ones wrote."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.tracked_run import ENTRIES, a_run, record

from training.errors import TrainingError
from training.tracking import trackers as tracking
from training.tracking.trackers import Trackers, check_report_to

pytestmark = pytest.mark.usefixtures("no_account")


class Broken:
    """A tracker that raises what it is told to."""

    failures = (OSError,)

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.closed = False

    def start(self) -> None:
        pass

    def log(self, entry: Mapping[str, float]) -> None:
        raise self.error

    def log_model(self, training: Mapping[str, Any]) -> None:
        raise self.error

    def close(self, *, failed: bool) -> None:
        self.closed = True


def test_failure_of_the_world_is_a_warning_and_a_mistake_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    trackers = Trackers()
    full = Broken(OSError(28, "No space left on device"))
    trackers.add("full", full)
    trackers.log(ENTRIES[0])
    trackers.log(ENTRIES[1])
    assert full.closed
    assert capsys.readouterr().err.count("No space left on device") == 1
    trackers.add("mistaken", Broken(KeyError("step")))
    with pytest.raises(KeyError):
        trackers.log(ENTRIES[0])


def test_tensorboard_has_the_curves_of_the_last_start_alone(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = a_run(tmp_path)
    record(run, "tensorboard", entries=[{"step": 3, "epoch": 0.3, "loss": 9.0}])
    record(run, "tensorboard")
    (events,) = (run.folder / "tensorboard").iterdir()
    assert socket.gethostname() not in events.name
    read = EventAccumulator(str(events)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(5, 4.0), (10, 3.0)]
    assert [(event.step, event.value) for event in read.Scalars("eval_loss")] == [(10, 3.5)]
    assert len(read.Scalars("learning_rate")) == 2


@pytest.mark.integration
def test_mlflow_has_the_curves_of_the_last_start_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    record(run, "mlflow", entries=[{"step": 3, "epoch": 0.3, "loss": 9.0}])
    record(run, "mlflow")
    assert capfd.readouterr() == ("", "")
    from mlflow import MlflowClient  # its log level is read at import: `record` imports it first

    client = MlflowClient(tracking_uri=f"sqlite:///{run.folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("goose")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["hyper_parameters.learning_rate"] == "0.004"
    assert found.data.tags["training.libraries.torch"] == "2.13.0"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(5, 4.0), (10, 3.0)]


@pytest.mark.integration
def test_mlflow_of_the_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'theirs.db'}")
    run = a_run(tmp_path)
    record(run, "mlflow")
    assert (tmp_path / "theirs.db").is_file()
    assert not (run.folder / "mlflow").exists()


def test_nothing_is_recorded_for_none(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record(run, "none")
    assert sorted(path.name for path in run.folder.iterdir()) == ["README.md", "model.safetensors"]


def test_trackers_are_checked_by_name_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_report_to(["tensorboard", "wandb", "wandb"]) == ("tensorboard", "wandb")
    with pytest.raises(TrainingError, match="'comet' is not known, expected some of wandb, tensorboard"):
        check_report_to(["comet"])
    with pytest.raises(TrainingError, match="none goes without wandb"):
        check_report_to(["wandb", "none"])
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="pip install mlflow-skinny sqlalchemy alembic"):
        check_report_to(["mlflow"])
    assert check_report_to(["none"]) == ()


def test_checking_trackers_loads_none_of_them() -> None:
    code = (
        "import sys; from training.tracking.trackers import check_report_to\n"
        "check_report_to(['wandb', 'tensorboard', 'mlflow'])\n"
        "assert not {'wandb', 'tensorboard', 'mlflow', 'torch', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
