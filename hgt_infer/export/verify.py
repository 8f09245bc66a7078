"""Compare an artifact's logits with another implementation's of the same checkpoint: NumPy's at export.

Every comparison takes prompts of different lengths through the graph as the engine does: all but the last
token of each in a run of its own, then single steps of all of them on top of the cache. The caller opens
the GPU that fp16 runs on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.engine.batch import Batch
from hgt_infer.engine.sequence import Sequence as RunningSequence
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ModelFormatError
from hgt_infer.export.checkpoint import Checkpoint
from hgt_infer.export.numpy_model import hidden_states
from hgt_infer.runtime.device import CpuDevice, Device
from hgt_infer.runtime.runner import ModelRunner

logger = logging.getLogger(__name__)

PROMPT_LENGTHS = (4, 5, 17, 6)
NUM_STEPS = 4  # the prompt's last token and three more

# Largest allowed |difference| is absolute + relative · |logit|. fp32: rounding of two orders of summation.
TOLERANCES = {"fp32": (1e-4, 1e-5), "fp16": (0.1, 0.01)}
# int8's differences are noise: their mean square is compared with the variance of the logits.
MAX_INT8_NOISE = 0.01

LastLogits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Token ids of one text → logits [NUM_STEPS, V] at its last NUM_STEPS tokens."""


@dataclass(frozen=True)
class Difference:
    """How far an artifact's logits are from a reference's.

    Attributes:
        largest: of the absolute differences.
        allowed: what the precision allows, in words.
        is_close: whether all of them are allowed.
    """

    largest: float
    allowed: str
    is_close: bool


def verify(artifact: Artifact, checkpoint: Checkpoint, device: Device | None = None) -> None:
    """Compare an artifact's logits with NumPy's on a device, as `compare` does; warn where it cannot.

    On a CPU both of its graphs are compared, that of the kernels where their library is there.

    Raises:
        ModelFormatError: a difference is above the precision's tolerance.
    """
    if device is None and artifact.precision == "fp16":
        logger.warning(
            "%s: fp16 runs on CUDA only, and no GPU was opened for the check: not verified", artifact.path
        )
        return
    expected = numpy_logits(checkpoint)
    found = [compare(artifact, expected, device)]
    if device is None:
        with contextlib.closing(CpuDevice(with_kernels=False)) as cpu:
            found.append(compare(artifact, expected, cpu))
    for difference in found:
        assert difference is not None
        if not difference.is_close:
            raise ModelFormatError(
                f"{checkpoint.path}: the exported logits differ from NumPy's "
                f"by up to {difference.largest:g}; allowed are {difference.allowed}"
            )
    logger.info("%s: logits within %.2g of NumPy's", artifact.path, max(x.largest for x in found if x))


def compare(artifact: Artifact, expected: LastLogits, device: Device | None = None) -> Difference | None:
    """Compare an artifact's logits on a device with the expected ones.

    device: where the artifact's precision runs, left open; None is a CPU. Of fp16 nothing is compared there.
    """
    if device is None:
        if artifact.precision == "fp16":
            return None
        with contextlib.closing(CpuDevice()) as cpu:
            return compare(artifact, expected, cpu)
    texts, actual = _run(artifact, device)
    logits = np.stack([expected(text) for text in texts], axis=1)
    difference = np.abs(actual - logits)
    if artifact.precision == "int8":
        allowed = f"a mean square of {MAX_INT8_NOISE:g} of their variance"
        is_close = np.square(difference).mean() <= MAX_INT8_NOISE * logits.var()
    else:
        absolute, relative = TOLERANCES[artifact.precision]
        allowed = f"{absolute:g} + {relative:g} · |logit|"
        is_close = np.all(difference <= absolute + relative * np.abs(logits))
    return Difference(float(difference.max()), allowed, bool(is_close))


def _run(artifact: Artifact, device: Device) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Texts of random ids, and the artifact's logits [NUM_STEPS, len(texts), V] at their last tokens."""
    config = artifact.config
    rng = np.random.default_rng(0)
    lengths = [min(length, config.n_positions - NUM_STEPS) for length in PROMPT_LENGTHS]
    params = SequenceParams(max_tokens=NUM_STEPS, seed=0, temperature=0.0)
    sequences = [
        RunningSequence(tuple(rng.integers(0, config.vocab_size, length).tolist()), params, slot=slot)
        for slot, length in enumerate(lengths)
    ]
    runner = ModelRunner(artifact, device, num_slots=len(sequences), max_length=max(lengths) + NUM_STEPS)

    def run(batch: Batch) -> None:
        runner.launch(batch)
        runner.collect()

    for sequence in sequences:
        num_tokens = sequence.num_prompt_left
        run(Batch([sequence], num_tokens, is_prefill=True, copies=[], admitted=[sequence]))
        sequence.num_computed = num_tokens
    logits = []
    for _ in range(NUM_STEPS):
        run(Batch(sequences, 1, is_prefill=False, copies=[], admitted=[]))
        logits.append(runner.download_logits(len(sequences)).copy())
        for sequence in sequences:
            sequence.num_computed += 1
            sequence.append(int(rng.integers(0, config.vocab_size)))
    texts = [[*sequence.prompt_token_ids, *sequence.output_token_ids[:-1]] for sequence in sequences]
    return texts, np.stack(logits)


def numpy_logits(checkpoint: Checkpoint) -> LastLogits:
    """The logits of `numpy_model`."""
    weights = dict(checkpoint.weights)
    head = weights.get("lm_head.weight", weights["wte.weight"])

    def last_logits(token_ids: Sequence[int]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = (
            hidden_states(checkpoint.config, weights, token_ids)[-NUM_STEPS:] @ head.T
        )
        return logits

    return last_logits
