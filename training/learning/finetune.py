"""Trains a GPT-2 on a dataset with transformers' Trainer, from its beginning or from the last training
checkpoint.

Models come from `base_model`, blocks of tokens from `token_blocks`, the Trainer and its callbacks from
`trainer`; `checkpoint` writes the result.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback

from training.corpus.dataset import Dataset
from training.corpus.token_blocks import TokenBlocks, tokenize
from training.errors import DivergedError, HyperParameterError
from training.learning.base_model import load_base, new_model, train_tokenizer, with_adapters
from training.learning.checkpoint import save
from training.learning.presets import HyperParameters, RunOptions, ScratchModel
from training.learning.trainer import (
    Milestones,
    QuietProgress,
    TweetTrainer,
    set_schedule,
    training_arguments,
)

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate")


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a run measured. Losses are nats per token; None where no tweets were set aside.

    `block_size` is the one used, cut to the model's context. `best_step` is the step whose weights were kept
    where the best are. `seconds` is the training alone, of the last start where it was resumed.
    """

    num_parameters: int
    block_size: int
    num_training_tokens: int
    num_evaluation_tokens: int
    num_steps: int
    best_step: int | None
    train_loss: float
    loss_before: float | None
    loss_after: float | None
    seconds: float
    device: str
    precision: str
    num_processes: int
    num_threads: int
    libraries: dict[str, str]


def finetune(
    dataset: Dataset,
    folder: Path,
    work: Path,
    *,
    base: str | ScratchModel,
    hyper_parameters: HyperParameters,
    options: RunOptions,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingReport:
    """Train on the dataset and save weights, configuration and tokenizer.

    Goes on from the last whole training checkpoint in `work`, and then ends with the same weights as a run
    that was not interrupted. Under torchrun or accelerate launch every process calls it, with the same
    arguments; the first one writes.

    Args:
        dataset: texts of training and evaluation.
        folder: a folder, made here, that becomes the checkpoint.
        work: an existing folder for training checkpoints.
        base: a hub id or folder of a GPT-2, or the size of one that starts from random weights.
        hyper_parameters: the block size is cut to the base model's context.
        options: how to go about it.
        seed: of the weights that start at random, dropout and the order of blocks; 0 to 2³² − 1.
        callbacks: more of the Trainer's callbacks.

    Raises:
        BaseModelError: the base cannot be loaded or is not a GPT-2.
        HyperParameterError: a precision that the device has not; best weights asked for without evaluation.
        DivergedError: the loss is not finite.
    """
    _be_quiet()
    if (options.keep_best or options.early_stopping) and not dataset.num_evaluation:
        raise HyperParameterError("the best weights need tweets set aside: eval_fraction is 0, expected more")
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    precision = resolve_precision(options.precision)
    transformers.set_seed(seed)
    # TrainingArguments leaves there what an earlier run had, and takes it from there.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if precision == "fp32" else precision
    arguments = training_arguments(work / "steps", hyper_parameters, options, precision, seed=seed)
    with arguments.main_process_first(local=False):
        if isinstance(base, ScratchModel):
            tokenizer = _own_tokenizer(dataset, work / "tokenizer", base, hyper_parameters.block_size)
            model = new_model(base, tokenizer, hyper_parameters.block_size)
        else:
            tokenizer, model = load_base(base)
    model.config.use_cache = False  # with a cache, transformers does not look for packed tweets
    num_parameters = model.num_parameters()
    block_size = min(hyper_parameters.block_size, model.config.n_positions)

    texts = tokenize(dataset.store, tokenizer.backend_tokenizer, tokenizer.eos_token_id)
    apart = hyper_parameters.tweets_apart
    blocks = TokenBlocks(texts, dataset.order, block_size, apart=apart)
    evaluation = TokenBlocks(texts, dataset.evaluation_order, block_size, apart=apart)
    evaluation_blocks = evaluation.overlapping(block_size) if dataset.num_evaluation else []

    if options.gradient_checkpointing:
        # From transformers 5 on it has another name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if options.lora:
        model = with_adapters(model, options.lora, gradient_checkpointing=options.gradient_checkpointing)
    set_schedule(arguments, len(blocks), hyper_parameters)
    milestones = Milestones(options.num_evaluations, evaluate=bool(evaluation_blocks))
    progress = QuietProgress()
    trainer = TweetTrainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        eval_dataset=evaluation_blocks,
        data_collator=default_data_collator,
        callbacks=[progress, milestones, *callbacks],
    )
    if options.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping))
    trainer.remove_callback(PrinterCallback)
    loss_before = trainer.evaluation_loss()
    start = time.perf_counter()
    with _write_errors_named(work), closing(progress):
        result = trainer.train(resume_from_checkpoint=last_whole_checkpoint(work / "steps"))
    seconds = time.perf_counter() - start
    loss_after = trainer.evaluation_loss()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    train_loss = sum(losses) / len(losses)
    for loss in (train_loss, loss_after):
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"training diverged: the loss is {loss}; "
                f"try a learning rate under {hyper_parameters.learning_rate}"
            )

    if trainer.is_world_process_zero():
        with _write_errors_named(folder):
            save(trainer.model.merge_and_unload() if options.lora else trainer.model, tokenizer, folder)
    return TrainingReport(
        num_parameters=num_parameters,
        block_size=block_size,
        num_training_tokens=blocks.num_tokens,
        num_evaluation_tokens=evaluation.num_tokens if dataset.num_evaluation else 0,
        num_steps=result.global_step,
        best_step=trainer.state.best_global_step if arguments.load_best_model_at_end else None,
        train_loss=train_loss,
        loss_before=loss_before,
        loss_after=loss_after,
        seconds=seconds,
        device=str(model.device),
        precision=precision,
        num_processes=arguments.world_size,
        num_threads=torch.get_num_threads(),
        libraries={"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    )


def resolve_precision(precision: str) -> str:
    """Return `fp32`, `bf16` or `fp16`: what the device at hand computes in.

    Raises:
        HyperParameterError: fp16 without a GPU, or bf16 on a GPU that has it not.
    """
    on_gpu = torch.cuda.is_available()
    if precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision == "fp16" and not on_gpu:
        raise HyperParameterError("precision is 'fp16', which needs a GPU; a CPU has fp32 and bf16")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise HyperParameterError("precision is 'bf16', which this GPU has not; try fp16")
    return precision


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest training checkpoint that was written to its end; None without one.

    The Trainer writes trainer_state.json last.
    """
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole[json.loads(path.read_text(encoding="utf-8"))["global_step"]] = path.parent
        except (ValueError, KeyError):
            continue  # killed while it was written
    return str(whole[max(whole)]) if whole else None


def _own_tokenizer(dataset: Dataset, folder: Path, size: ScratchModel, max_length: int) -> Any:
    if not folder.is_dir():
        aside = folder.with_name(folder.name + ".partial")
        aside.mkdir(exist_ok=True)
        train_tokenizer(chain.from_iterable(dataset.training), aside, size.vocab_size, max_length)
        aside.rename(folder)
    return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _write_errors_named(folder: Path) -> Iterator[None]:
    """Make OSErrors of those that safetensors and torch.save raise where a disk is full."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        reason = str(error).strip().split("\n", 1)[0]
        raise OSError(errno.EIO, f"cannot be saved ({reason})", str(folder)) from error


def _be_quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
