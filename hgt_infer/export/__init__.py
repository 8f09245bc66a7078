"""From a checkpoint folder to an artifact folder: read, build the graphs, verify, save."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from hgt_infer.artifact.folder import (
    EXTERNAL_DATA_FILE,
    MODEL_FILE,
    SAMPLER_FILE,
    Artifact,
    new_artifact,
    read_artifact,
    write_metadata,
)
from hgt_infer.export.checkpoint import Checkpoint, read_checkpoint
from hgt_infer.export.graph import build_graph
from hgt_infer.export.precision import float_type
from hgt_infer.export.sampling_graph import build_sampler
from hgt_infer.export.verify import installed_references, verify

EXPORTER_VERSION = "5"
"""Part of the key of the export cache: raised when the same checkpoint gives another artifact."""

__all__ = ["EXPORTER_VERSION", "export_checkpoint", "installed_references"]


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    force: bool = False,
    references: Sequence[str] = ("numpy",),
) -> Artifact:
    """Export a checkpoint folder, check the result, and only then save it.

    Args:
        checkpoint: a folder with config.json, weights and tokenizer.
        output: the artifact folder to write; it must not exist unless force replaces it.
        precision: "fp32" or "int8" for the CPU, "fp16" for CUDA.
        force: whether an existing artifact is replaced.
        references: what the logits are compared with: "numpy" needs nothing more, "transformers" and
            "optimum" (its own ONNX export) load PyTorch; `installed_references` lists those at hand.

    Raises:
        ModelNotFoundError, ModelFormatError: no checkpoint, not a GPT-2, or logits that differ.
        ParameterError: another precision or reference, or an output that exists.
    """
    float_type(precision)
    source = read_checkpoint(checkpoint)
    with new_artifact(output, force=force) as folder:
        _save_model(source, folder, precision)
        _save_sampler(source, folder)
        source.tokenizer.save(str(folder / "tokenizer.json"))
        write_metadata(folder, source.config, precision, source.generation_defaults)
        verify(read_artifact(folder), source, references)
    return read_artifact(output)


def _save_model(source: Checkpoint, folder: Path, precision: str) -> None:
    """Build and save the decoder; its copy of the weights is gone when this returns."""
    model = build_graph(source.config, source.weights, precision=precision)
    # Weights beside the graph: ONNX Runtime maps them instead of parsing them (0.7 s against 2.4 s
    # for GPT-2 124M), and a graph file cannot exceed 2 GB.
    ir.save(model, folder / MODEL_FILE, external_data=EXTERNAL_DATA_FILE)


def _save_sampler(source: Checkpoint, folder: Path) -> None:
    """Build and save the sampler of the CPU: it depends on the vocabulary and end-of-text alone."""
    sampler = build_sampler(
        vocab_size=source.config.vocab_size, eos_token_ids=source.generation_defaults.eos_token_ids
    )
    ir.save(sampler, folder / SAMPLER_FILE)
