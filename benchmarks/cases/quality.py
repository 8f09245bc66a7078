"""What a precision costs in quality: perplexity, KL divergence and top-1 agreement beside fp32, on real text.

`python -m benchmarks quality CHECKPOINT --tweets FILE`: the checkpoint should be a trained one.
`python -m benchmarks quality`: random weights with outliers, as large as GPT-2 124M, over texts they sample.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.checkpoints import END_OF_TEXT
from hgt_infer import Generator, SamplingParams
from hgt_infer.artifact.folder import KERNEL_CACHE_TYPES, Artifact
from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.export import export_checkpoint
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.kernel_session import BlockCache


def measure_quality(
    checkpoint: Path, texts: Sequence[str | Sequence[int]], precisions: Sequence[str] = ("fp16", "int8")
) -> dict[str, Any]:
    """Compare precisions with fp32, over the tokens of all texts, on the CPU. A text may be its token ids.

    fp16 rounds there between operators, which compute in fp32 inside; how a GPU sums is not seen.

    Returns:
        `num_tokens`, and by precision `perplexity`; of all but fp32 also `kl` (mean nats from fp32's
        distribution of the next token to its own) and `top1` (the share of tokens where both choose
        the same).
    """
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {
            name: export_checkpoint(checkpoint, Path(folder, name), precision=name)
            for name in ("fp32", *precisions)
        }
        tokenizer = Tokenizer(artifacts["fp32"].tokenizer_path)
        limit = artifacts["fp32"].config.n_positions
        ids = [
            (tokenizer.encode(END_OF_TEXT + text + END_OF_TEXT) if isinstance(text, str) else text)[:limit]
            for text in texts
        ]
        sides = {name: _log_probabilities(artifact, ids) for name, artifact in artifacts.items()}
        sums = {name: np.zeros(3) for name in artifacts}  # nats, KL, agreements
        num_tokens = 0
        for row in ids:
            expected = next(sides["fp32"])
            for name, side in sides.items():
                actual = expected if name == "fp32" else next(side)
                sums[name] += (
                    -actual[np.arange(len(row) - 1), row[1:]].sum(),
                    (np.exp(expected) * (expected - actual)).sum(),
                    (expected.argmax(1) == actual.argmax(1)).sum(),
                )
            num_tokens += len(row) - 1
    result: dict[str, Any] = {"num_tokens": num_tokens}
    for name, (nats, divergence, agreements) in sums.items():
        result[name] = {"perplexity": math.exp(nats / num_tokens)}
        if name != "fp32":
            result[name] |= {"kl": divergence / num_tokens, "top1": agreements / num_tokens}
    return result


def sample_texts(checkpoint: Path, num_texts: int, num_tokens: int) -> list[list[int]]:
    """Token ids of texts that a checkpoint samples in fp32 behind end-of-text: seeded, of equal length."""
    params = SamplingParams(
        n=num_texts, max_tokens=num_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=0, ignore_eos=True
    )
    with tempfile.TemporaryDirectory() as folder:
        artifact = export_checkpoint(checkpoint, Path(folder, "fp32"))
        with Generator(artifact.path, device="cpu") as generator:
            (output,) = generator.generate(END_OF_TEXT, params)
    return [[*output.prompt_token_ids, *sample.token_ids] for sample in output.completions]


def _log_probabilities(artifact: Artifact, ids: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float64]]:
    """Of each text: log-probabilities [tokens - 1, V] of what follows each token but the last."""
    with closing(CpuDevice()) as device:
        has_kernels = device.kernels is not None and artifact.has_kernel_graphs
        session = device.open_session(artifact.kernel_path if has_kernels else artifact.model_path)
        inputs_of = _kernel_inputs if has_kernels else _inputs
        for row in ids:
            logits = session.run(["logits"], inputs_of(artifact, row))[0][:-1].astype(np.float64)
            shifted = logits - logits.max(1, keepdims=True)
            yield shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _inputs(artifact: Artifact, row: Sequence[int]) -> dict[str, Any]:
    """Inputs of `build_graph`'s graph: a text in one run."""
    config = artifact.config
    past = np.zeros((1, config.n_head, len(row), config.head_size), artifact.float_type)
    kinds = [f"past_{kind}.{layer}" for layer in range(config.n_layer) for kind in ("key", "value")]
    return {
        "input_ids": np.array([row], np.int32),
        "position_ids": np.arange(len(row), dtype=np.int32)[None],
        "first_output": np.zeros(1, np.int64),
        "seqlens_k": np.array([len(row) - 1], np.int32),
        "total_sequence_length": np.array(len(row), np.int32),
        **dict.fromkeys(kinds, past),
    }


def _kernel_inputs(artifact: Artifact, row: Sequence[int]) -> dict[str, Any]:
    """Inputs of `build_kernel_graph`'s graph: a text in one run."""
    tokens = np.arange(len(row), dtype=np.int32)
    cache = BlockCache(
        artifact.config,
        num_slots=1,
        max_length=len(row),
        dtype=np.dtype(KERNEL_CACHE_TYPES[artifact.precision]),
    )
    return {
        "input_ids": np.array(row, np.int32),
        "position_ids": tokens,
        "slots": np.zeros_like(tokens),
        "output_tokens": tokens,
        "cache": cache.array,
    }
