"""The sampler's graph, run over rows of logits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from hgt_infer.export.sampling_graph import build_sampler
from hgt_infer.kernels.library import load_kernels
from hgt_infer.sampling.random_numbers import GRAPH_UNIFORMS

Array = NDArray[Any]


class GraphSampler:
    """The sampler for one vocabulary; where the kernels are there, their graph has to give the same."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...] = ()) -> None:
        kernels = load_kernels()
        self.sessions = []
        for with_kernels in (False, True)[: 1 + (kernels is not None)]:
            model = build_sampler(
                vocab_size=vocab_size, eos_token_ids=eos_token_ids, with_kernels=with_kernels
            )
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1  # more would spin against the other worker's
            if kernels is not None:
                options.register_custom_ops_library(str(kernels.path))
            serialized = ir.to_proto(model).SerializeToString()
            self.sessions.append(
                ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
            )

    def inputs(
        self,
        num_rows: int,
        logits: Array,
        *,
        temperature: Any = 1.0,
        top_k: Any = 0,
        top_p: Any = 1.0,
        min_p: Any = 0.0,
        too_short: Any = False,
        is_adjusted: Any = False,
        logit_bias: Any = 0.0,
        repetition_penalty: Any = 1.0,
    ) -> dict[str, Array]:
        """Logits [B, V], or [V] of all rows; each setting is one value or that of each row."""

        def column(value: Any, dtype: type) -> Array:
            return np.array(np.broadcast_to(value, num_rows), dtype)

        def whole(value: Any) -> Array:
            return np.array(np.broadcast_to(value, (num_rows, np.shape(logits)[-1])), np.float32)

        # Adjustments that are not read are 0, a penalty that would leave no logit finite.
        unread = np.zeros((num_rows, np.shape(logits)[-1]), np.float32)
        adjusted = np.any(is_adjusted)
        return {
            "logits": whole(logits),
            "temperature": column(temperature, np.float32),
            "top_k": column(top_k, np.int64),
            "top_p": np.where(column(top_p, np.float32) < 1, column(top_p, np.float32), np.float32(2)),
            "min_p": column(min_p, np.float32),
            "seqlens_k": np.full(num_rows, 9, np.int32),
            "min_length": np.where(column(too_short, np.bool_), 11, 10).astype(np.int32),
            "is_adjusted": column(is_adjusted, np.bool_),
            "logit_bias": whole(logit_bias) if adjusted else unread,
            "repetition_penalty": whole(repetition_penalty) if adjusted else unread,
        }

    def run(self, inputs: dict[str, Array], uniforms: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        feeds = inputs | {"uniforms": uniforms.astype(np.float32)}
        token_ids, unresolved = self.sessions[0].run(["token_ids", "unresolved"], feeds)
        for session in self.sessions[1:]:
            others = session.run(["token_ids", "unresolved"], feeds)
            np.testing.assert_array_equal(others[1], unresolved)
            np.testing.assert_array_equal(others[0][~unresolved], token_ids[~unresolved])
        return token_ids, unresolved

    def __call__(
        self, logits: Array, uniforms: Array, **settings: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """token_ids and unresolved of as many rows as there are uniforms; settings as of `inputs`."""
        return self.run(self.inputs(len(uniforms), logits, **settings), uniforms)


sampler_of = functools.cache(GraphSampler)


def uniforms(num_rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((num_rows, GRAPH_UNIFORMS), np.float32)
