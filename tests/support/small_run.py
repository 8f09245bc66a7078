"""A run that takes a second or two: a sample archive's tweets and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.corpus.cleaning import CleanedTweets, Counts, Texts
from training.corpus.dataset import Dataset, make_dataset
from training.corpus.text_store import TextStore
from training.learning.presets import HyperParameters, RunOptions, ScratchModel
from training.sample.archive import sample_archive

if TYPE_CHECKING:
    from training.learning.finetune import TrainingReport

# Options of the command line.
TINY = ["--base", "scratch", "--hidden-size", "64", "--num-layers", "1", "--vocab-size", "400"]
TINY += ["--block-size", "64", "--batch-size", "4", "--epochs", "2", "--learning-rate", "0.005"]
TINY += ["--evaluations", "2", "--no-preview", "--no-tweets-apart"]

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
