"""A run that takes a second or two: a sample archive's tweets and a tiny model; and runs that die."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.corpus.cleaning import CleanedTweets, Counts, Texts
from training.corpus.dataset import Dataset, make_dataset
from training.corpus.text_store import TextStore
from training.learning.presets import FINE_TUNING, HyperParameters, RunOptions, ScratchModel
from training.sample.archive import sample_archive

if TYPE_CHECKING:
    from training.learning.finetune import TrainingReport

# Options of the command line.
TINY = ["--base", "scratch", "--hidden-size", "64", "--num-layers", "1", "--vocab-size", "400"]
TINY += ["--block-size", "64", "--batch-size", "4", "--epochs", "2", "--learning-rate", "0.005"]
TINY += ["--evaluations", "2", "--no-preview"]

TINY_MODEL = ScratchModel(vocab_size=400, hidden_size=64, num_layers=1, dropout=0.1)
TINY_RUN = HyperParameters(epochs=2, learning_rate=5e-3, block_size=64, batch_size=4)


def write_archive(path: Path, num_tweets: int = 200) -> Path:
    path.write_text(sample_archive(num_tweets=num_tweets), encoding="utf-8")
    return path


def small_texts(num_tweets: int = 200) -> list[str]:
    archive = sample_archive(num_tweets=num_tweets)
    return [record["tweet"]["full_text"] for record in json.loads(archive[archive.index("[") :])]


def cleaned_of(*texts: str, counts: Counts | None = None, store: TextStore | None = None) -> CleanedTweets:
    store = TextStore() if store is None else store
    indices = np.array([store.append(text) for text in texts], np.int64)
    counts = counts or Counts(downloaded=len(texts), retweets=0, short=0)
    kept = Texts(store, indices)
    return CleanedTweets(kept=kept, counts=counts, num_duplicates=0, num_replies=0, per_year={})


def small_dataset(
    *, num_tweets: int = 200, epochs: int = 2, eval_fraction: float = 0.1, seed: int = 3
) -> Dataset:
    cleaned = cleaned_of(*small_texts(num_tweets))
    return make_dataset([cleaned], epochs=epochs, eval_fraction=eval_fraction, seed=seed)


def train(folder: Path, *, dataset: Dataset | None = None, **changes: Any) -> TrainingReport:
    """Train in a folder with one evaluation, but for what is changed."""
    from training.learning.finetune import finetune

    folder.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "base": TINY_MODEL,
        "hyper_parameters": TINY_RUN,
        "options": RunOptions(num_evaluations=1, num_threads=1),
        "seed": 3,
    }
    return finetune(dataset or small_dataset(), folder / "checkpoint", folder, **(arguments | changes))


FOUR_EVALUATIONS = RunOptions(num_evaluations=4, num_threads=1)


def train_and_die(folder: Path, place: str) -> None:
    """Train, in a process of its own, and kill it at the place that is named."""
    import torch

    from training.learning import finetune, trainer

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "while it saves the optimizer":
        saved = torch.save

        def save(value: object, path: Any, *args: Any, **options: Any) -> None:
            if "optimizer" in str(path) and "checkpoint-24" in str(path):
                Path(path).write_bytes(b"half")
                kill()
            saved(value, path, *args, **options)

        torch.save = save
    elif place == "after training":
        finetune.save = kill  # type: ignore[assignment]
    else:
        step = {"before anything is saved": 5, "in the middle": 30}[place]
        begin = trainer.Milestones.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == step:
                kill()
            begin(self, args, state, control, **rest)

        trainer.Milestones.on_step_end = on_step_end  # type: ignore[method-assign]
    train(folder, options=FOUR_EVALUATIONS)


def train_as_one_of_two(folder: Path, rank: int, port: int) -> None:
    """Train as torchrun has a process do it, and leave its report beside the folder."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    report = train(folder, base=dataclasses.replace(TINY_MODEL, dropout=0.0))
    folder.with_name(f"report-{rank}.json").write_text(json.dumps(dataclasses.asdict(report)))


def valley(tried: HyperParameters, number: int = 0) -> float:
    """Lowest at a rate of e^-9, 6 epochs and a linear schedule."""
    return (
        (math.log(tried.learning_rate) + 9) ** 2
        + 0.1 * abs(tried.epochs - 6)
        + (tried.schedule != "linear")
        + tried.warmup_ratio
    )


def sweep_and_die(storage: Path, at: int) -> None:
    """Search with the seed 5, in a process of its own, and kill it in the trial of a number."""
    from training.learning.sweep import sweep

    def objective(tried: HyperParameters, number: int) -> float:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return valley(tried)

    sweep(objective, base=FINE_TUNING, num_trials=at + 1, seed=5, storage=storage)
