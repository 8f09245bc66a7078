"""From a checkpoint folder to an artifact folder: read, build the graphs, verify, save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import (
    EXTERNAL_DATA_FILE,
    KERNEL_CACHE_TYPES,
    KERNEL_FILE,
    KERNEL_SAMPLER_FILE,
    MODEL_FILE,
    SAMPLER_FILE,
    Artifact,
    check_precision,
    new_artifact,
    read_artifact,
    write_metadata,
)
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.decoder import Decoder
from hgt_infer.export.int8_decoder import Int8Decoder
from hgt_infer.export.kernel_decoder import KernelDecoder
from hgt_infer.export.sampling_graph import build_sampler
from hgt_infer.export.smoothing import SmoothedWeights
from hgt_infer.export.verify import verify
from hgt_infer.runtime.device import OpenDevice, no_device

EXPORTER_VERSION = "8"
"""Part of the key of the export cache: raised when the same checkpoint gives another artifact."""


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    force: bool = False,
    open_device: OpenDevice = no_device,
    is_verified: bool = True,
) -> Artifact:
    """Export a checkpoint folder, check the logits of the result, and only then save it.

    Args:
        checkpoint: a folder with config.json, weights and tokenizer.
        output: the artifact folder to write; it must not exist unless force replaces it.
        precision: "fp32" or "int8" for the CPU, "fp16" for CUDA.
        force: whether an existing artifact is replaced.
        open_device: called with `precision` for the check, opens the device that runs the model. Where it
            gives None, that is the CPU; fp16 does not run there: it is saved unchecked, with a warning.
        is_verified: whether the logits are compared with NumPy's at all.

    Raises:
        ModelNotFoundError, ModelFormatError: no checkpoint, not a GPT-2, or logits that differ.
        ParameterError: another precision, or an output that exists.
    """
    check_precision(precision)
    source = read_checkpoint(checkpoint)
    with new_artifact(output, force=force) as folder:
        # Weights beside the graph: ONNX Runtime maps them instead of parsing them (0.7 s against 2.4 s
        # for GPT-2 124M), and a graph file cannot exceed 2 GB.
        _save_graphs(folder, source.config, source.weights, precision)
        end_of_text = source.generation_defaults.eos_token_ids
        vocab_size = source.config.vocab_size
        ir.save(build_sampler(vocab_size=vocab_size, eos_token_ids=end_of_text), folder / SAMPLER_FILE)
        if precision in KERNEL_CACHE_TYPES:
            sampler = build_sampler(vocab_size=vocab_size, eos_token_ids=end_of_text, with_kernels=True)
            ir.save(sampler, folder / KERNEL_SAMPLER_FILE)
        source.tokenizer.save(str(folder / "tokenizer.json"))
        write_metadata(folder, source.config, precision, source.generation_defaults)
        if is_verified:
            with open_device(precision) as device:
                verify(read_artifact(folder), source, device)
    return read_artifact(output)


def _save_graphs(
    folder: Path, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], precision: str
) -> None:
    """Save the decoder's graphs for a precision, over one file of weights."""
    if precision not in KERNEL_CACHE_TYPES:
        model = build_graph(config, weights, precision=precision)
        ir.save(model, folder / MODEL_FILE, external_data=EXTERNAL_DATA_FILE)
        return
    kernel_model = build_kernel_graph(config, weights, precision=precision)
    ir.save(kernel_model, folder / KERNEL_FILE, external_data=EXTERNAL_DATA_FILE)
    saved = ir.load(folder / KERNEL_FILE)  # its weights are references to the file
    ir.save(build_graph(config, weights, precision=precision, kernel_model=saved), folder / MODEL_FILE)


def build_kernel_graph(
    config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], *, precision: str
) -> ir.Model:
    """Build the decoder in the operators of `hgt_infer.kernels`: "fp32" or "int8", on a CPU.

    A run takes T tokens of any sequences and writes their keys and values into the cache, which is an input
    and changes in place.

    Inputs (T tokens, P of which give logits; N slots of M blocks of 16 positions, L layers, H heads of size
    D, V tokens in the vocabulary):
        input_ids, position_ids, slots int32 [T]: a slot's tokens follow each other, at consecutive positions
        output_tokens int32 [P]: which tokens give logits
        cache [N, M, L, 2, H, 16, D]: keys and values; float32, in int8 float16
    Output: logits float32 [P, V].
    """
    if precision == "int8":
        weights = SmoothedWeights(config, weights)
    return KernelDecoder(config, weights, precision).build()


def build_graph(
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    precision: str,
    kernel_model: ir.Model | None = None,
) -> ir.Model:
    """Build the decoder in ONNX Runtime's operators, over a static KV cache that a run writes in place.

    A graph for a CPU has the weights of `kernel_model`, which is made where it is not given.

    One graph serves prompts and single steps: a run takes S tokens per row and gives the logits of the last P
    tokens per row. The sampler is a graph of its own.

    Inputs (B rows, S tokens a row, M cache positions, H heads of size D, V tokens in the vocabulary):
        input_ids int32 [B, S], position_ids int32 [B, S]: S = 1, or from position 0, or B = 1
        seqlens_k int32 [B]: last position of each row
        total_sequence_length int32 []: largest seqlens_k + 1, or anything up to M above; in CPU memory
        first_output int64 [1], 0 … S: tokens first_output … S - 1 of each row give logits; in CPU memory
        past_key.i, past_value.i [B, H, M, D]: bind the same buffer as present_key.i, present_value.i
    Outputs (P = S - first_output): logits float32 [B · P, V]; present_key.i, present_value.i.
    """
    decoder = Int8Decoder if precision == "int8" else Decoder
    stored: dict[str, Any] = {}
    if precision in KERNEL_CACHE_TYPES:
        kernel_model = kernel_model or build_kernel_graph(config, weights, precision=precision)
        stored = {name: value.const_value for name, value in kernel_model.graph.initializers.items()}
    return decoder(config, weights, precision, stored).build()
