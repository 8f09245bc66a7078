"""What dataset.json and training.json of a checkpoint say of its making.

Pure functions of what the other modules report; the card is made from these records alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from training.corpus.cleaning import CleaningRules
from training.corpus.dataset import Dataset, sha256_of
from training.corpus.users import User
from training.learning.presets import HyperParameters, RunOptions, ScratchModel

if TYPE_CHECKING:
    from training.learning.finetune import TrainingReport


def user_records(users: Sequence[User]) -> list[dict[str, Any]]:
    """Return for each user what was read: files, counts, years."""
    return [
        {
            "handle": user.handle,
            "name": user.name,
            "tweet_files": list(user.tweet_files),
            "counts": {**asdict(user.cleaned.counts), "kept": user.cleaned.counts.kept},
            "num_duplicates": user.cleaned.num_duplicates,
            "num_replies": user.cleaned.num_replies,
            "per_year": user.cleaned.per_year,
        }
        for user in users
    ]


def dataset_record(
    users: Sequence[User],
    dataset: Dataset,
    *,
    rules: CleaningRules,
    eval_fraction: float,
    hyper_parameters: HyperParameters,
    language: str | None,
    report: TrainingReport,
) -> dict[str, Any]:
    """Return what dataset.json holds: enough to tell whether two runs saw the same text."""
    of_users = [
        record | {"num_training": len(training), "num_evaluation": len(evaluation), "repeats": repeats}
        for record, training, evaluation, repeats in zip(
            user_records(users), dataset.training, dataset.evaluation, dataset.repeats, strict=True
        )
    ]
    return {
        "handle": "-".join(user.handle for user in users),
        "users": of_users,
        "rules": asdict(rules),
        "num_training": dataset.num_training,
        "num_evaluation": dataset.num_evaluation,
        "eval_fraction": eval_fraction,
        "seed": dataset.seed,
        "epochs": hyper_parameters.epochs,
        "epoch_layout": hyper_parameters.epoch_layout,
        "characters": dataset.num_characters(),
        "tokens": report.num_training_tokens,
        "text_sha256": sha256_of(dataset.training),
        "evaluation_text_sha256": sha256_of(dataset.evaluation),
        "language": language,
        "warnings": list(dataset.warnings),
    }


def training_record(
    report: TrainingReport,
    *,
    base: str,
    base_is_local: bool,
    scratch_model: ScratchModel | None,
    hyper_parameters: HyperParameters,
    options: RunOptions,
    seed: int,
) -> dict[str, Any]:
    """Return what training.json holds. A loss that is None was not measured."""
    return {
        "base": base,
        "base_is_local": base_is_local,
        "scratch_model": asdict(scratch_model) if scratch_model else None,
        "hyper_parameters": {
            **asdict(hyper_parameters),
            "block_size": report.block_size,
            "optimizer": "AdamW",
            "max_grad_norm": 1.0,
        },
        "lora": asdict(options.lora) if options.lora else None,
        "precision": report.precision,
        "gradient_checkpointing": options.gradient_checkpointing,
        "keep_best": options.keep_best or options.early_stopping is not None,
        "early_stopping": options.early_stopping,
        "best_step": report.best_step,
        "seed": seed,
        "num_parameters": report.num_parameters,
        "num_steps": report.num_steps,
        "train_loss": report.train_loss,
        "evaluation": {
            "tokens": report.num_evaluation_tokens,
            "loss_before": report.loss_before,
            "loss_after": report.loss_after,
            "perplexity_before": perplexity(report.loss_before),
            "perplexity_after": perplexity(report.loss_after),
        },
        "seconds": report.seconds,
        "device": report.device,
        "num_processes": report.num_processes,
        "num_threads": report.num_threads,
        "libraries": report.libraries,
    }


def perplexity(loss: float | None) -> float | None:
    """Return e to the loss, the perplexity per token.

    >>> perplexity(0.0), perplexity(None)
    (1.0, None)
    """
    return None if loss is None else math.exp(loss)
