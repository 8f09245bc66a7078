"""Hyper-parameters as named, frozen presets, with the arithmetic behind them. Nothing here needs PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from training.errors import HyperParameterError

EpochLayout = Literal["file", "passes"]
Schedule = Literal["cosine", "linear", "constant"]
EPOCH_LAYOUTS: tuple[str, ...] = get_args(EpochLayout)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

HEAD_SIZE = 64  # of every GPT-2 size; the number of heads follows from the hidden size


@dataclass(frozen=True, kw_only=True)
class HyperParameters:
    """One pass with AdamW over a file of `epochs` epochs, or as many passes over a file of one.

    Attributes:
        epochs: how often each tweet is trained on, ≥ 1.
        epoch_layout: `file`, the file holds every epoch and is read once, as huggingtweets has it; `passes`,
            the file holds each tweet once and is read `epochs` times, its blocks in a new order each time.
        tweets_apart: positions restart at each tweet and none sees another, as in generation; otherwise a
            block is read as one text, as huggingtweets does.
        learning_rate: the peak of the schedule, over 0.
        schedule: from the peak on: `cosine` or `linear` to 0 at the last step, or `constant`.
        warmup_ratio: part of the steps that rise linearly to the peak, 0 up to, not including, 1.
        block_size: tokens in a row, ≥ 2.
        batch_size: rows that a device takes at once, ≥ 1.
        gradient_accumulation: batches whose gradients make a step, ≥ 1.
        weight_decay: of AdamW, ≥ 0; not on biases and LayerNorms.

    Raises:
        HyperParameterError: a value out of its range.
    """

    epochs: int
    epoch_layout: EpochLayout = "file"
    tweets_apart: bool = False
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.0
    block_size: int
    batch_size: int
    gradient_accumulation: int = 1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, minimum in (
            ("epochs", 1),
            ("block_size", 2),
            ("batch_size", 1),
            ("gradient_accumulation", 1),
        ):
            if getattr(self, name) < minimum:
                raise HyperParameterError(f"{name} is {getattr(self, name)}, expected {minimum} or more")
        for name, choices in (("epoch_layout", EPOCH_LAYOUTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                expected = ", ".join(choices)
                raise HyperParameterError(f"{name} is {getattr(self, name)!r}, expected one of {expected}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise HyperParameterError(f"learning_rate is {self.learning_rate}, expected a number over 0")
        if not 0 <= self.warmup_ratio < 1:
            raise HyperParameterError(f"warmup_ratio is {self.warmup_ratio}, expected 0 up to 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise HyperParameterError(f"weight_decay is {self.weight_decay}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ScratchModel:
    """The size of a GPT-2 that starts from random weights; its context is the block size.

    Attributes:
        vocab_size: entries of its own tokenizer, at least 257: the bytes and <|endoftext|>.
        hidden_size: a multiple of 64, the size of a head.
        num_layers: transformer blocks, ≥ 1.
        dropout: of embeddings, attention and residuals, 0 up to, not including, 1.

    Raises:
        HyperParameterError: a value out of its range.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    dropout: float

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise HyperParameterError(f"vocab_size is {self.vocab_size}, expected 257 or more")
        if self.hidden_size < HEAD_SIZE or self.hidden_size % HEAD_SIZE:
            raise HyperParameterError(
                f"hidden_size is {self.hidden_size}, expected a multiple of {HEAD_SIZE}"
            )
        if self.num_layers < 1:
            raise HyperParameterError(f"num_layers is {self.num_layers}, expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise HyperParameterError(f"dropout is {self.dropout}, expected 0 up to 1")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) on every matrix of the layers, merged into the weights before
    saving.

    Attributes:
        rank: of the adapters' matrices, ≥ 1.
        alpha: the update is scaled by alpha / rank, ≥ 1.
        dropout: of the adapters' input, 0 up to, not including, 1.

    Raises:
        HyperParameterError: a value out of its range.
    """

    rank: int
    alpha: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise HyperParameterError(f"lora_{name} is {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise HyperParameterError(f"lora_dropout is {self.dropout}, expected 0 up to 1")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run goes about it.

    Attributes:
        num_evaluations: how often the tweets set aside are evaluated and a training checkpoint is saved,
            evenly spread and at the end, ≥ 1.
        keep_best: the weights of the lowest evaluation loss become the checkpoint, instead of the last ones.
        early_stopping: stop after so many evaluations in a row without a lower loss, ≥ 1; where not
            given, never.
        precision: `fp32`, `bf16`, `fp16` or `auto`, which is bf16 on a GPU that has it, else fp32; weights
            and optimizer are fp32 in any case.
        gradient_checkpointing: compute activations twice instead of keeping them.
        lora: train adapters instead of all weights; None for all weights.
        num_threads: of the CPU, ≥ 1; where not given, PyTorch's choice.

    Raises:
        HyperParameterError: a value out of its range.
    """

    num_evaluations: int = 10
    keep_best: bool = False
    early_stopping: int | None = None
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_evaluations", "early_stopping", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HyperParameterError(f"{name} is {value}, expected 1 or more")
        if self.precision not in PRECISIONS:
            expected = ", ".join(PRECISIONS)
            raise HyperParameterError(f"precision is {self.precision!r}, expected one of {expected}")


# For a pre-trained GPT-2. 2,200 tweets of 35 tokens are 77,000 tokens; 4 epochs of them are 300 steps.
FINE_TUNING = HyperParameters(epochs=4, learning_rate=1.372e-4, block_size=1024, batch_size=1)

# For random weights, which learn next to nothing at FINE_TUNING's rate, and which would learn from whole
# blocks to begin a tweet only where a block begins. The shipped archive's 2,070 training tweets are 36,000
# tokens of its own vocabulary, 12 epochs 430,000: 420 steps of 4 × 256. The evaluation loss is lowest near
# step 350. Tweets end within 160 tokens, so 256 positions are enough.
SCRATCH = HyperParameters(
    epochs=12, tweets_apart=True, learning_rate=4e-3, warmup_ratio=0.05, block_size=256, batch_size=4
)
# 2 layers × 12 × 128² = 393,000 weights, (1,300 tokens + 256 positions) × 128 = 199,000 more. 6 FLOP for
# each weight and token are 6 × 592,000 × 430,000 = 1.5 TFLOP: under a minute at 0.04 TFLOP/s, one CPU core.
# A second thread helps little in matrices of this size, and is slow where it has to wait for a busy core.
# 2,048 is a limit: the shipped archive has fewer pieces to merge.
SCRATCH_NUM_THREADS = 1
SCRATCH_MODEL = ScratchModel(vocab_size=2048, hidden_size=128, num_layers=2, dropout=0.0)
