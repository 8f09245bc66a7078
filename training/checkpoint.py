"""The checkpoint folder as files: written aside and renamed when complete, with the records of its making.

Weights and tokenizer are written by `finetune`, the card's text by `model_card`.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cleaning import Counts
from training.dataset import Dataset
from training.errors import OutputFolderError
from training.presets import HyperParameters, ScratchModel

if TYPE_CHECKING:
    from training.finetune import TrainingReport


def check_output(output: Path, *, force: bool) -> None:
    """Check that a checkpoint may be written to `output`.

    Raises:
        OutputFolderError: it is a file, or a folder that is not empty without `force`, or, even with it, a
            folder that is no checkpoint.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputFolderError(f"output {output} is a file, expected a folder or nothing")
    if any(output.iterdir()):
        if not force:
            raise OutputFolderError(f"output {output} is not empty; choose another folder or give --force")
        if not (output / "config.json").is_file():
            raise OutputFolderError(
                f"output {output} is not a checkpoint (no config.json); --force only replaces those"
            )


@contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder beside `output` that takes its place on success and vanishes on any error.

    Raises:
        OutputFolderError: as `check_output`, or the folder cannot be made.
    """
    check_output(output, force=force)
    output = output.resolve()
    staging = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise OutputFolderError(f"output {output} cannot be written ({error.strerror or error})") from error
    try:
        yield staging
        replaced = staging.with_suffix(".replaced")
        if output.exists():
            check_output(output, force=force)
            output.rename(replaced)
        staging.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def file_record(path: Path) -> dict[str, str]:
    """Return a file's name, without its folder, and the SHA-256 of its bytes."""
    name = path.name.encode(errors="replace").decode()  # a name may hold bytes that are no UTF-8
    return {"name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def dataset_record(
    dataset: Dataset,
    *,
    handle: str,
    counts: Counts,
    tweet_files: Sequence[Mapping[str, str]],
    report: TrainingReport,
) -> dict[str, Any]:
    """Return what dataset.json holds: enough to tell whether two runs saw the same text."""
    return {
        "handle": handle,
        "tweet_files": list(tweet_files),
        "counts": {**asdict(counts), "kept": counts.kept},
        "num_training": dataset.num_training,
        "num_evaluation": dataset.num_evaluation,
        "seed": dataset.seed,
        "epochs": dataset.epochs,
        "characters": len(dataset.text),
        "tokens": report.num_training_tokens,
        "text_sha256": hashlib.sha256(dataset.text.encode()).hexdigest(),
        "evaluation_text_sha256": hashlib.sha256(dataset.evaluation_text.encode()).hexdigest(),
        "warnings": list(dataset.warnings),
    }


def training_record(
    report: TrainingReport,
    *,
    base: str,
    scratch_model: ScratchModel | None,
    hyper_parameters: HyperParameters,
    seed: int,
) -> dict[str, Any]:
    """Return what training.json holds. A loss that is None was not measured."""
    return {
        "base": base,
        "scratch_model": asdict(scratch_model) if scratch_model else None,
        "hyper_parameters": {
            **asdict(hyper_parameters),
            "optimizer": "AdamW",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "schedule": "cosine",
        },
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
        "num_threads": report.num_threads,
        "libraries": report.libraries,
        "log_history": report.log_history,
    }


def perplexity(loss: float | None) -> float | None:
    """Return e to the loss, the perplexity per token.

    >>> perplexity(0.0), perplexity(None)
    (1.0, None)
    """
    return None if loss is None else math.exp(loss)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, indented, UTF-8."""
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
