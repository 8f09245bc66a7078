"""A run for trackers to record."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from training.job import tweet_records
from training.tracking.run import TrackedRun
from training.tracking.trackers import check_report_to, tracked

Entry = dict[str, float]

CONFIG = {
    "seed": 7,
    "hyper_parameters": {"learning_rate": 4e-3, "schedule": "cosine"},
    "scratch_model": {"hidden_size": 64, "num_layers": 1},
}
DATASET = {"handle": "goose", "seed": 7, "epochs": 4, "version": "0.1.0"}
TRAINING = {
    "seed": 7,
    "evaluation": {"loss_before": 7.5, "loss_after": 2.5},
    "libraries": {"torch": "2.13.0", "transformers": "4.57.6"},
}
ENTRIES: list[Entry] = [
    {"step": 5, "epoch": 0.5, "loss": 4.0, "learning_rate": 4e-3},
    {"step": 10, "epoch": 1.0, "loss": 3.0, "learning_rate": 2e-3},
    {"step": 10, "epoch": 1.0, "eval_loss": 3.5},
]


def a_run(root: Path, **changes: Any) -> TrackedRun:
    folder = root / ".model.training" / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    tweets = root / "tweets.csv"
    tweets.write_text("id,text\n1,the heron is back\n", encoding="utf-8")

    def write(path: Path) -> None:
        path.write_text("<|endoftext|>the heron is back<|endoftext|>", encoding="utf-8")

    arguments: dict[str, Any] = {
        "folder": folder,
        "output": root / "model",
        "handle": "goose",
        "tweet_files": (tweets,),
        "read_tweets": tweet_records,
        "write_dataset": write,
        "dataset": DATASET,
        "base": "scratch",
        "config": CONFIG,
    }
    return TrackedRun(**(arguments | changes))


def record(run: TrackedRun, *names: str, entries: list[Entry] = ENTRIES) -> None:
    with tracked(check_report_to(names), run) as trackers:
        for entry in entries:
            trackers.log(entry)
        (run.folder / "model.safetensors").write_bytes(b"weights")
        (run.folder / "README.md").write_text("the card", encoding="utf-8")
        trackers.log_model(TRAINING)


def record_with_a_service_that_dies(root: Path) -> None:
    """Kill the service of Weights & Biases while a run is recorded; print what another tracker heard."""
    import psutil

    other = Mock(failures=(OSError,))
    with tracked(["wandb"], a_run(root)) as trackers:
        trackers.add("other", other)
        trackers.log(ENTRIES[0])
        for process in psutil.Process().children(recursive=True):
            process.kill()
            process.wait()
        for entry in ENTRIES[1:] * 3:
            trackers.log(entry)
        trackers.log_model(TRAINING)
    print(f"{other.log.call_count} entries, {other.log_model.call_count} model")
