"""metrics.jsonl: what is written, when a run begins and when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from training.errors import OutputFolderError
from training.learning.metrics_log import MetricsLog, read_metrics


class Trainer:
    """Calls a MetricsLog as transformers' Trainer does."""

    def __init__(self, path: Path, *, resumed_at: int = 0, main: bool = True) -> None:
        self.heard: list[Mapping[str, float]] = []
        self.state = TrainerState(global_step=resumed_at, is_world_process_zero=main)
        self.callback = MetricsLog(path, self.heard.append)
        self.callback.on_train_begin(None, self.state, TrainerControl())

    def log(self, step: int, **logs: Any) -> None:
        self.state.global_step = step
        self.state.epoch = step / 10
        self.callback.on_log(None, self.state, TrainerControl(), logs=logs)


def test_entries_are_written_as_they_come_and_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    trainer = Trainer(path)
    trainer.log(5, loss=4.0, learning_rate=1e-4, grad_norm=1.5, epoch=0.5)
    assert path.read_text(encoding="utf-8") == (
        '{"step": 5, "epoch": 0.5, "loss": 4.0, "learning_rate": 0.0001, "grad_norm": 1.5}\n'
    )
    trainer.log(10, eval_loss=3.5, epoch=1.0)
    assert read_metrics(path)[1] == {"step": 10, "epoch": 1.0, "eval_loss": 3.5}
    assert trainer.heard == read_metrics(path)


def test_what_is_no_loss_is_not_written(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "metrics.jsonl")
    trainer.log(10, train_runtime=3.0, train_loss=2.0, total_flos=1e9)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_left_out(tmp_path: Path, value: float) -> None:
    trainer = Trainer(tmp_path / "metrics.jsonl")
    trainer.log(5, loss=2.0, grad_norm=value)
    trainer.log(10, loss=value, learning_rate=1e-4)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "epoch": 0.5, "loss": 2.0}]


def test_resumed_run_drops_later_steps_and_tells_the_earlier_ones_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    killed = Trainer(path)
    for step in (5, 10, 15, 20):
        killed.log(step, loss=float(step))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 25, "epo')  # killed while it wrote
    resumed = Trainer(path, resumed_at=10)
    assert [entry["step"] for entry in resumed.heard] == [5, 10]
    resumed.log(15, loss=15.0)
    assert [entry["step"] for entry in read_metrics(path)] == [5, 10, 15]
    assert resumed.heard == read_metrics(path)


def test_new_run_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Trainer(path).log(5, loss=4.0)
    assert Trainer(path).heard == []
    assert read_metrics(path) == []


def test_run_that_went_on_without_its_file_begins_one(tmp_path: Path) -> None:
    Trainer(tmp_path / "metrics.jsonl", resumed_at=10).log(15, loss=1.0)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [15]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    other = Trainer(tmp_path / "metrics.jsonl", main=False)
    other.log(5, loss=4.0)
    assert not list(tmp_path.iterdir())
    assert other.heard == []


@pytest.mark.parametrize("line", ["step 5: 4.0", "[5, 4.0]", '{"loss": 4.0}', '{"step": "5"}'])
def test_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "epoch": 0.1, "loss": 4.0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(OutputFolderError, match=r"metrics\.jsonl:2: expected"):
        read_metrics(path)


def test_a_training_run_logs_losses_rates_and_evaluations(whole: Path) -> None:
    entries = read_metrics(whole / "metrics.jsonl")
    training = [entry for entry in entries if "loss" in entry]
    evaluation = [entry for entry in entries if "eval_loss" in entry]
    assert [entry["step"] for entry in training] == [*range(1, 49)]
    assert training[0]["learning_rate"] == pytest.approx(5e-3, rel=0.2)
    assert all(entry["grad_norm"] > 0 for entry in training)
    assert [entry["step"] for entry in evaluation] == [12, 24, 36, 48]
    state = json.loads((whole / "steps" / "checkpoint-48" / "trainer_state.json").read_text())
    assert [entry["eval_loss"] for entry in evaluation] == [
        entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry
    ]
    assert evaluation[-1]["eval_loss"] < evaluation[0]["eval_loss"]
    assert evaluation[-1]["epoch"] == 1.0
    assert all(json.dumps(entry, allow_nan=False) for entry in entries)
