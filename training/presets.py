"""Hyper-parameters as named, frozen presets, with the arithmetic behind them. Nothing here needs PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.errors import HyperParameterError

HEAD_SIZE = 64  # of every GPT-2 size; the number of heads follows from the hidden size


@dataclass(frozen=True, kw_only=True)
class HyperParameters:
    """One pass with AdamW and a cosine schedule down to 0 over a file of `epochs` epochs.

    Attributes:
        epochs: how often each tweet occurs in the file, ≥ 1.
        learning_rate: the peak, over 0.
        warmup_steps: steps of a linear rise to the peak, ≥ 0.
        block_size: tokens in a row, ≥ 2.
        batch_size: rows in a step, ≥ 1.

    Raises:
        HyperParameterError: a value out of its range.
    """

    epochs: int
    learning_rate: float
    warmup_steps: int
    block_size: int
    batch_size: int

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 1), ("warmup_steps", 0), ("block_size", 2), ("batch_size", 1)):
            if getattr(self, name) < minimum:
                raise HyperParameterError(f"{name} is {getattr(self, name)}, expected {minimum} or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise HyperParameterError(f"learning_rate is {self.learning_rate}, expected a number over 0")


@dataclass(frozen=True, kw_only=True)
class ScratchModel:
    """The size of a GPT-2 that starts from random weights; its context is the block size.

    Attributes:
        vocab_size: entries of its own tokenizer, at least 257: the bytes and <|endoftext|>.
        hidden_size: a multiple of 64, the size of a head.
        num_layers: ≥ 1.
        dropout: 0 up to, not including, 1.

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


# For a pre-trained GPT-2. 2,200 tweets of 35 tokens are 77,000 tokens; 4 epochs of them are 300 steps.
FINE_TUNING = HyperParameters(epochs=4, learning_rate=1.372e-4, warmup_steps=0, block_size=1024, batch_size=1)

# For random weights, which learn next to nothing at FINE_TUNING's rate. The shipped archive's 2,070 training
# tweets are 36,000 tokens of its own vocabulary, 20 epochs 717,000: 700 steps of 4 × 256. Steps count for
# more than width: 280 of them end near 1.8 nats, 560 near 1.0, 700 near 0.9. Tweets end within 160 tokens, so
# 256 positions are enough.
SCRATCH = HyperParameters(epochs=20, learning_rate=4e-3, warmup_steps=20, block_size=256, batch_size=4)
# 2 layers × 12 × 128² = 393,000 weights, (1,300 tokens + 256 positions) × 128 = 199,000 more. 6 FLOP for each
# weight and token are 6 × 592,000 × 717,000 = 2.5 TFLOP: a minute at 0.04 TFLOP/s, one CPU core. A second
# thread helps little in matrices of this size, and is slow where it has to wait for a busy core.
# 2,048 is a limit: the shipped archive has fewer pieces to merge.
SCRATCH_NUM_THREADS = 1
SCRATCH_MODEL = ScratchModel(vocab_size=2048, hidden_size=128, num_layers=2, dropout=0.0)
