"""GPT-2's forward pass as one ONNX graph over a static KV cache. Samplers are graphs of their own.

One graph serves prompts and single steps: a run takes S tokens per row, writes their keys and values
into the cache in place, and gives the logits of the last P tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.export.decoder import Decoder
from hgt_infer.export.int8_decoder import Int8Decoder


def build_graph(
    config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], *, precision: str
) -> ir.Model:
    """Build the decoder of one checkpoint.

    Inputs (B rows, S tokens a row, M cache positions, H heads of size D, V tokens in the vocabulary):
        input_ids int32 [B, S], position_ids int32 [B, S]: S = 1, or from position 0, or B = 1
        seqlens_k int32 [B]: last position of each row
        total_sequence_length int32 []: largest seqlens_k + 1, or anything up to M above; in CPU memory
        first_output int64 [1], 0 … S: tokens first_output … S - 1 of each row give logits; in CPU memory
        past_key.i, past_value.i [B, H, M, D]: bind the same buffer as present_key.i, present_value.i
    Outputs (P = S - first_output): logits float32 [B · P, V]; present_key.i, present_value.i.
    """
    decoder = Int8Decoder if precision == "int8" else Decoder
    return decoder(config, weights, precision).build()
