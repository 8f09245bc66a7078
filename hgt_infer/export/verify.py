"""Compare an artifact's logits with other implementations of the same checkpoint.

Every comparison takes prompts of different lengths through the graph as the engine does: all but the last
token of each in a run of its own, then single steps of all of them on top of the cache.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.runtime import count_cuda_devices
from hgt_infer.engine.scheduler import Batch
from hgt_infer.engine.sequence import Sequence as RunningSequence
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ModelFormatError, ParameterError
from hgt_infer.export.checkpoint import Checkpoint
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


def installed_references() -> list[str]:
    """The references that this environment can compute: numpy always."""
    names = ["numpy"]
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        names.append("transformers")
        if importlib.util.find_spec("optimum") and importlib.util.find_spec("optimum.onnxruntime"):
            names.append("optimum")
    return names


@dataclass(frozen=True)
class Difference:
    """How far an artifact's logits are from a reference's.

    Attributes:
        reference: its name.
        largest: of the absolute differences.
        allowed: what the precision allows, in words.
        is_close: whether all of them are allowed.
    """

    reference: str
    largest: float
    allowed: str
    is_close: bool


def verify(artifact: Artifact, checkpoint: Checkpoint, references: Sequence[str]) -> dict[str, float]:
    """Return the largest absolute difference of logits to each reference.

    Raises:
        ModelFormatError: a difference is above the precision's tolerance.
        ParameterError: an unknown reference.
    """
    differences = {}
    for found in compare(artifact, checkpoint, references):
        if not found.is_close:
            raise ModelFormatError(
                f"{checkpoint.path}: the exported logits differ from {found.reference}'s by up to "
                f"{found.largest:g}; allowed are {found.allowed}"
            )
        differences[found.reference] = found.largest
        logger.info("%s: logits within %.2g of %s's", artifact.path, found.largest, found.reference)
    return differences


def compare(artifact: Artifact, checkpoint: Checkpoint, references: Sequence[str]) -> Iterator[Difference]:
    """Compare an artifact's logits with each reference's; nothing comes where no device here can run it.

    Raises:
        ParameterError: an unknown reference.
    """
    unknown = set(references) - set(REFERENCES)
    if unknown:
        raise ParameterError(
            f"references must be of {', '.join(REFERENCES)}; got {', '.join(sorted(unknown))}"
        )
    if not references:
        return
    device: Device = CpuDevice()
    if artifact.precision == "fp16":
        if not count_cuda_devices():
            logger.warning(
                "%s: fp16 runs on CUDA only, and there is no GPU here: not verified", artifact.path
            )
            return
        device = CudaDevice()
    with contextlib.closing(device):
        texts, actual = _run(artifact, device)
    for name in references:
        with REFERENCES[name](checkpoint) as last_logits:
            expected = np.stack([last_logits(text) for text in texts], axis=1)
        difference = np.abs(actual - expected)
        if artifact.precision == "int8":
            allowed = f"a mean square of {MAX_INT8_NOISE:g} of their variance"
            is_close = np.square(difference).mean() <= MAX_INT8_NOISE * expected.var()
        else:
            absolute, relative = TOLERANCES[artifact.precision]
            allowed = f"{absolute:g} + {relative:g} · |logit|"
            is_close = np.all(difference <= absolute + relative * np.abs(expected))
        yield Difference(name, float(difference.max()), allowed, bool(is_close))


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


@contextlib.contextmanager
def _numpy(checkpoint: Checkpoint) -> Iterator[LastLogits]:
    """GPT-2 as in Radford et al., "Language models are unsupervised multitask learners" (2019)."""
    config, weights = checkpoint.config, dict(checkpoint.weights)

    def norm(x: NDArray[Any], name: str) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        scale = np.sqrt(np.square(centered).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return centered / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: NDArray[Any], name: str) -> Any:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x: NDArray[Any], name: str) -> Any:
        heads = linear(x, f"{name}.c_attn").reshape(len(x), 3, config.n_head, config.head_size)
        query, key, value = heads.transpose(1, 2, 0, 3)  # [heads, tokens, head_size] each
        scores = query @ key.swapaxes(1, 2) / np.float32(config.head_size**0.5)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        return linear(mixed.swapaxes(0, 1).reshape(x.shape), f"{name}.c_proj")

    def mlp(x: NDArray[Any], name: str) -> Any:
        x = linear(x, f"{name}.c_fc")
        return linear(x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))), f"{name}.c_proj")

    def last_logits(token_ids: Sequence[int]) -> NDArray[np.float32]:
        x = weights["wte.weight"][list(token_ids)] + weights["wpe.weight"][: len(token_ids)]
        for layer in range(config.n_layer):
            x = x + attention(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn")
            x = x + mlp(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp")
        head = weights.get("lm_head.weight", weights["wte.weight"])
        logits: NDArray[np.float32] = norm(x[-NUM_STEPS:], "ln_f") @ head.T
        return logits

    yield last_logits


@contextlib.contextmanager
def _transformers(checkpoint: Checkpoint) -> Iterator[LastLogits]:
    import transformers

    with _quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="float32").eval()
    yield _torch_logits(model)


@contextlib.contextmanager
def _optimum(checkpoint: Checkpoint) -> Iterator[LastLogits]:
    with _quiet():
        from optimum.onnxruntime import ORTModelForCausalLM

        model = ORTModelForCausalLM.from_pretrained(
            checkpoint.path, export=True, provider="CPUExecutionProvider"
        )
    yield _torch_logits(model)


def _torch_logits(model: Any) -> LastLogits:
    import torch

    def last_logits(token_ids: Sequence[int]) -> NDArray[np.float32]:
        input_ids = torch.tensor([token_ids])
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(**inputs).logits[0, -NUM_STEPS:].numpy()
        return logits

    return last_logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress and tracing notes of other libraries' loading out of the caller's terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


REFERENCES: dict[str, Callable[[Checkpoint], contextlib.AbstractContextManager[LastLogits]]] = {
    "numpy": _numpy,
    "transformers": _transformers,
    "optimum": _optimum,
}
