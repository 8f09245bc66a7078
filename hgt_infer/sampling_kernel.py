"""The sampler kernel: its source, and what the compiler is told of what it shares with Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hgt_infer.cuda import CudaDevice
from hgt_infer.cuda_kernel import Kernel
from hgt_infer.sampling import UNIFORMS_PER_STEP
from hgt_infer.slot_record import FED, HELD, MAX_EOS_TOKENS, MAX_FED_TOKENS, STANDS, UNRESOLVED

SOURCE = Path(__file__).with_name("sampler.cu")
NAME = "sample"
BLOCK_SIZE = 1024
"""Threads that sample a row."""


def sampler_defines(vocab_size: int) -> dict[str, int]:
    """The source's macros but for BLOCK, which no result depends on."""
    return {
        "VOCAB_SIZE": vocab_size,
        "NUM_FED_TOKENS": MAX_FED_TOKENS + 1,
        "NUM_EOS_TOKENS": MAX_EOS_TOKENS,
        "WORDS_PER_STEP": UNIFORMS_PER_STEP,
        "STANDS": STANDS,
        "FED": FED,
        "UNRESOLVED": UNRESOLVED,
        "HELD": HELD,
    }


def open_sampler(device: CudaDevice, vocab_size: int, addresses: Sequence[int]) -> Kernel:
    """Compile the sampler for a device; addresses are the kernel's arguments, a block samples a row."""
    return device.kernel(
        SOURCE, NAME, block_size=BLOCK_SIZE, defines=sampler_defines(vocab_size), addresses=addresses
    )
