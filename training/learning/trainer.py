"""transformers' Trainer as `finetune` uses it: its arguments, its evaluation per token, its callbacks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from training.corpus.token_blocks import Block
from training.learning.presets import HyperParameters, RunOptions

NUM_LOG_ENTRIES = 50  # about so many losses are logged


def training_arguments(
    output_dir: Path,
    hyper_parameters: HyperParameters,
    options: RunOptions,
    precision: str,
    *,
    seed: int,
) -> Any:
    """Return the Trainer's arguments, but for what `set_schedule` sets."""
    keep_best = options.keep_best or options.early_stopping is not None
    warmed_up = hyper_parameters.schedule == "constant" and hyper_parameters.warmup_ratio > 0
    return TrainingArguments(
        output_dir=str(output_dir),
        # In the layout `file`, the file itself holds the epochs.
        num_train_epochs=hyper_parameters.epochs if hyper_parameters.epoch_layout == "passes" else 1,
        per_device_train_batch_size=hyper_parameters.batch_size,
        gradient_accumulation_steps=hyper_parameters.gradient_accumulation,
        learning_rate=hyper_parameters.learning_rate,
        lr_scheduler_type="constant_with_warmup" if warmed_up else hyper_parameters.schedule,
        optim="adamw_torch_fused",
        weight_decay=hyper_parameters.weight_decay,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        # Milestones says when; the numbers of steps only have to agree.
        save_strategy="steps",
        save_steps=10**9,
        eval_strategy="steps" if keep_best else "no",
        eval_steps=10**9,
        load_best_model_at_end=keep_best,
        metric_for_best_model="eval_loss" if keep_best else None,
        greater_is_better=False if keep_best else None,
        logging_strategy="steps",
        report_to="none",  # metrics_log hands on what is logged
        ddp_find_unused_parameters=False,
        disable_tqdm=True,  # its own bar prints every log line; QuietProgress shows the loss instead
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def set_schedule(arguments: Any, num_blocks: int, hyper_parameters: HyperParameters) -> None:
    """Set the arguments that count in steps, now that the number of blocks is known."""
    rows = arguments.train_batch_size * arguments.world_size
    num_batches = math.ceil(num_blocks / rows)
    num_steps = math.ceil(num_batches / hyper_parameters.gradient_accumulation) * arguments.num_train_epochs
    arguments.warmup_steps = round(num_steps * hyper_parameters.warmup_ratio)
    arguments.logging_steps = max(1, int(num_steps) // NUM_LOG_ENTRIES)


class TweetTrainer(Trainer):  # type: ignore[misc]
    """The Trainer, whose evaluation weighs every token the same, in blocks of any length."""

    control: Any

    def evaluate(self, *_: object, **__: object) -> dict[str, float | None]:
        """Return and log the loss of the tweets set aside, as `eval_loss`."""
        metrics = {"eval_loss": self.evaluation_loss()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_loss(self) -> float | None:
        """Return the loss per token of the tweets set aside, a share by each process; None without them."""
        if not self.eval_dataset:
            return None
        model = self.accelerator.unwrap_model(self.model)
        share = self.eval_dataset[self.args.process_index :: self.args.world_size]
        with self.compute_loss_context_manager():
            sums = torch.tensor(summed_loss(model, share), dtype=torch.float64)
        model.train()
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
        return float(sums[0] / sums[1])


class Milestones(TrainerCallback):  # type: ignore[misc]
    """Evaluates, logs and saves a training checkpoint at `number` steps, evenly spread, the last one
    included.

    On disk are the newest training checkpoint, which a resumed run goes on from, and the best one.
    """

    def __init__(self, number: int, *, evaluate: bool) -> None:
        self._number = number
        self._evaluate = evaluate
        self._steps: set[int] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Spread the steps over the run."""
        self._steps = {math.ceil(state.max_steps * i / self._number) for i in range(1, self._number + 1)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for what is due at this step."""
        if state.global_step in self._steps:
            control.should_log = control.should_save = True
            control.should_evaluate = self._evaluate

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove all training checkpoints but the newest and the best."""
        kept = {f"checkpoint-{state.global_step}", Path(state.best_model_checkpoint or "").name}
        for path in Path(args.output_dir).glob("checkpoint-*"):
            if state.is_world_process_zero and path.name not in kept:
                shutil.rmtree(path)


class QuietProgress(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the loss behind it and no line per log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss of the last steps."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}", refresh=False)

    def close(self) -> None:
        """End the bar's line, also where training ended with an error."""
        if self.training_bar is not None:
            self.training_bar.close()


def summed_loss(model: Any, blocks: Sequence[Block]) -> tuple[float, int]:
    """Return the negative log-likelihood, in nats, of each block's tokens but the first, and their number."""
    model.eval()
    nats, num_tokens = 0.0, 0
    with torch.inference_mode():
        for block in blocks:
            # name: [1, tokens]
            inputs = {name: torch.from_numpy(array[None]).to(model.device) for name, array in block.items()}
            num_predicted = len(block["labels"]) - 1
            nats += model(**inputs).loss.item() * num_predicted
            num_tokens += num_predicted
    return nats, num_tokens
