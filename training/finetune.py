"""Trains a GPT-2 on a dataset with transformers' Trainer and saves model and tokenizer.

The only module of the package that loads PyTorch. What else a checkpoint folder holds is written by
`checkpoint` and `model_card`.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers  # type: ignore[import-untyped,unused-ignore]
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback

from training.dataset import END_OF_TEXT, Dataset, evaluation_blocks, training_blocks
from training.errors import BaseModelError, DivergedError
from training.presets import HEAD_SIZE, HyperParameters, ScratchModel

# As the text-generation pipeline takes them; lengths count the prompt, prefix included. top_k is left at
# transformers' default, 50.
SAMPLING_DEFAULTS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
}
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate")


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a run measured. Losses are nats per token; None where no tweets were set aside.

    `block_size` is the one used, cut to the model's context. `log_history` is the Trainer's: loss, learning
    rate and step. `seconds` is the training alone.
    """

    num_parameters: int
    block_size: int
    num_training_tokens: int
    num_evaluation_tokens: int
    num_steps: int
    train_loss: float
    loss_before: float | None
    loss_after: float | None
    seconds: float
    device: str
    num_threads: int
    libraries: dict[str, str]
    log_history: list[dict[str, float]]


def finetune(
    dataset: Dataset,
    folder: Path,
    *,
    base: str | ScratchModel,
    hyper_parameters: HyperParameters,
    seed: int,
    num_threads: int | None = None,
) -> TrainingReport:
    """Train on the dataset and save weights, configuration and tokenizer.

    Args:
        dataset: texts of training and evaluation.
        folder: an existing, empty folder that becomes the checkpoint.
        base: a hub id or folder of a GPT-2, or the size of one that starts from random weights.
        hyper_parameters: the block size is cut to the base model's context.
        seed: of the weights that start at random, dropout and the order of blocks; 0 to 2³² − 1.
        num_threads: of the CPU, ≥ 1; PyTorch's own choice where None.

    Raises:
        BaseModelError: the base cannot be loaded or is not a GPT-2.
        DivergedError: the loss is not finite.
    """
    _be_quiet()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    transformers.set_seed(seed)
    if isinstance(base, ScratchModel):
        tokenizer = train_tokenizer(dataset.text, folder, base.vocab_size, hyper_parameters.block_size)
        model = new_model(base, tokenizer, hyper_parameters.block_size)
    else:
        tokenizer, model = load_base(base)
    block_size = min(hyper_parameters.block_size, model.config.n_positions)

    token_ids = tokenizer(dataset.text)["input_ids"]
    evaluation_ids = tokenizer(dataset.evaluation_text)["input_ids"] if dataset.evaluation_text else []
    blocks = [{"input_ids": block, "labels": block} for block in training_blocks(token_ids, block_size)]

    with tempfile.TemporaryDirectory() as scratch_folder:
        trainer = _trainer(model, blocks, hyper_parameters, seed=seed, output_dir=scratch_folder)
        loss_before = evaluation_loss(model, evaluation_ids, block_size)
        start = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - start
        loss_after = evaluation_loss(model, evaluation_ids, block_size)
    for loss in (result.training_loss, loss_after):
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"training diverged: the loss is {loss}; "
                f"try a learning rate under {hyper_parameters.learning_rate}"
            )

    save(model, tokenizer, folder)
    return TrainingReport(
        num_parameters=model.num_parameters(),
        block_size=block_size,
        num_training_tokens=len(token_ids),
        num_evaluation_tokens=len(evaluation_ids),
        num_steps=result.global_step,
        train_loss=result.training_loss,
        loss_before=loss_before,
        loss_after=loss_after,
        seconds=seconds,
        device=str(model.device),
        num_threads=torch.get_num_threads(),
        libraries={"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        log_history=trainer.state.log_history,
    )


def load_base(base: str) -> tuple[Any, Any]:
    """Load (tokenizer, model) of a hub id or folder, in float32.

    Raises:
        BaseModelError: it cannot be loaded, or is not a GPT-2.
    """
    # Without this file transformers guesses the kind of model from letters in the path.
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        raise BaseModelError(f"base {base!r} cannot be loaded: the folder has no config.json")
    try:
        model_type = AutoConfig.from_pretrained(base).model_type
        if model_type != "gpt2":
            raise BaseModelError(f"base {base!r} is a {model_type} model, expected gpt2")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(base), model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BaseModelError):
            raise
        reason = str(error).strip().split("\n", 1)[0]
        raise BaseModelError(f"base {base!r} cannot be loaded: {reason}") from error


def train_tokenizer(text: str, folder: Path, vocab_size: int, max_length: int) -> Any:
    """Train a byte-level BPE in GPT-2's layout on the text, save it into the folder and load it from there.

    As in GPT-2, the vocabulary begins with the 256 bytes and ends with <|endoftext|>. A short text gives
    fewer than `vocab_size` entries.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.split(END_OF_TEXT), trainer)
    bpe.add_special_tokens([END_OF_TEXT])
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)

    # The trained model does not know the token that was added to it: written once more with it inside.
    layout = json.loads(bpe.to_str())
    layout["model"]["vocab"][END_OF_TEXT] = bpe.token_to_id(END_OF_TEXT)
    (folder / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": max_length,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))
    return AutoTokenizer.from_pretrained(folder)


def new_model(size: ScratchModel, tokenizer: Any, num_positions: int) -> Any:
    """Return a GPT-2 of the given size with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=num_positions,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.hidden_size // HEAD_SIZE,
            resid_pdrop=size.dropout,
            embd_pdrop=size.dropout,
            attn_pdrop=size.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def evaluation_loss(model: Any, token_ids: Sequence[int], block_size: int) -> float | None:
    """Return the mean negative log-likelihood, in nats, of each token but the first; None without such."""
    if len(token_ids) < 2:
        return None
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for block in evaluation_blocks(token_ids, block_size):
            ids = torch.tensor([block], device=model.device)  # [1, tokens]
            total += model(input_ids=ids, labels=ids).loss.item() * (len(block) - 1)
    return total / (len(token_ids) - 1)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), tokenizer and both places where sampling defaults are looked for."""
    sampling = SAMPLING_DEFAULTS | {"max_length": min(160, model.config.n_positions)}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    task_specific_params = {"text-generation": {**sampling, "prefix": END_OF_TEXT}}
    model.config.task_specific_params = task_specific_params
    model.config.use_cache = True  # some Trainers turn it off while they train
    model.generation_config = GenerationConfig(**sampling, **ids)
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        weights.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt

    # Some versions of transformers leave out of their files what they hold for a default or for outdated.
    _update_json(folder / "config.json", {"task_specific_params": task_specific_params})
    _update_json(folder / "generation_config.json", {**sampling, **ids})


def _trainer(
    model: Any,
    blocks: list[dict[str, list[int]]],
    hyper_parameters: HyperParameters,
    *,
    seed: int,
    output_dir: str,
) -> Any:
    num_steps = math.ceil(len(blocks) / hyper_parameters.batch_size)
    arguments = TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=1,  # the file itself holds the epochs
        per_device_train_batch_size=hyper_parameters.batch_size,
        learning_rate=hyper_parameters.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=hyper_parameters.warmup_steps,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=max(1, num_steps // 50),
        report_to="none",
        disable_tqdm=True,  # its own bar prints every log line; QuietProgress shows the loss instead
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=default_data_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(QuietProgress())
    return trainer


class QuietProgress(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the loss behind it and no line per log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss of the last steps."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}", refresh=False)


def _be_quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _update_json(path: Path, values: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
