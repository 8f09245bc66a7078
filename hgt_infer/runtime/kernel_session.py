"""KernelSession: the exported decoder in our own operators on a CPU, its KV cache, and its bindings."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import CACHE_BLOCK, KERNEL_CACHE_TYPES, Artifact
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.model_session import ModelBuffers


@dataclass(frozen=True)
class _Binding:
    """ONNX Runtime's binding, and the arrays that it reads beside the runner's."""

    binding: Any
    slots: NDArray[np.int32]
    output_tokens: NDArray[np.int32]


class BlockCache:
    """The keys and values of every slot, allocated once: a slot is a row of blocks of positions.

    What a sequence has of keys and values, in all layers, is one piece of memory. Pages that no sequence has
    reached are not resident.

    Attributes:
        array: [num_slots, num_blocks, n_layer, 2, n_head, CACHE_BLOCK, head_size].
        slot_bytes: of a slot.
    """

    def __init__(
        self, config: ModelConfig, *, num_slots: int, max_length: int, dtype: np.dtype[np.floating]
    ) -> None:
        num_blocks = -(-max_length // CACHE_BLOCK)
        shape = (num_slots, num_blocks, config.n_layer, 2, config.n_head, CACHE_BLOCK, config.head_size)
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        self.array: NDArray[np.floating] = np.frombuffer(memory, dtype).reshape(shape)
        self.slot_bytes = self.array.nbytes // num_slots

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`, in whole blocks."""
        num_blocks = -(-length // CACHE_BLOCK)
        self.array[target, :num_blocks] = self.array[source, :num_blocks]


class KernelSession:
    """The same as ModelSession with the kernels' graph, for a CPU that has the library.

    Args:
        artifact: the exported model, which has such a graph.
        device: the CPU.
        num_slots: sequences that can be in the cache at once.
        max_length: cache positions of a slot, prompt and output together.
    """

    def __init__(self, artifact: Artifact, device: CpuDevice, *, num_slots: int, max_length: int) -> None:
        self.session = device.open_session(artifact.kernel_path)
        dtype = np.dtype(KERNEL_CACHE_TYPES[artifact.precision])
        self.cache = BlockCache(artifact.config, num_slots=num_slots, max_length=max_length, dtype=dtype)
        self._vocab_size = artifact.config.vocab_size

    def bind(
        self, buffers: ModelBuffers, *, num_rows: int, num_tokens: int, num_outputs: int, first_slot: int = 0
    ) -> _Binding:
        """As ModelSession.bind: rows are slots, and their tokens follow each other."""
        token = np.arange(num_rows * num_tokens, dtype=np.int32).reshape(num_rows, num_tokens)
        return self._bind(
            buffers,
            slots=first_slot + token.reshape(-1) // num_tokens,
            output_tokens=token[:, num_tokens - num_outputs :].reshape(-1),
        )

    def bind_pieces(self, buffers: ModelBuffers, num_tokens: Seq[int]) -> _Binding:
        """Bind a run over slots 0, 1, … with so many tokens each, of which the last gives logits."""
        slots = np.repeat(np.arange(len(num_tokens), dtype=np.int32), num_tokens)
        return self._bind(buffers, slots=slots, output_tokens=np.cumsum(num_tokens, dtype=np.int32) - 1)

    def _bind(
        self, buffers: ModelBuffers, *, slots: NDArray[np.int32], output_tokens: NDArray[np.int32]
    ) -> _Binding:
        output_tokens = np.ascontiguousarray(output_tokens, np.int32)
        bound = _Binding(self.session.io_binding(), slots=slots, output_tokens=output_tokens)

        def bind_input(name: str, dtype: Any, shape: tuple[int, ...], address: int) -> None:
            bound.binding.bind_input(name, "cpu", 0, dtype, shape, address)

        bind_input("input_ids", np.int32, slots.shape, buffers.input_ids)
        bind_input("position_ids", np.int32, slots.shape, buffers.position_ids)
        bind_input("slots", np.int32, slots.shape, slots.ctypes.data)
        bind_input("output_tokens", np.int32, output_tokens.shape, output_tokens.ctypes.data)
        cache = self.cache.array
        bind_input("cache", cache.dtype.type, cache.shape, cache.ctypes.data)
        logits_shape = (len(output_tokens), self._vocab_size)
        bound.binding.bind_output("logits", "cpu", 0, np.float32, logits_shape, buffers.logits)
        return bound

    def run(self, bound: _Binding) -> None:
        """Run what was bound."""
        self.session.run_with_iobinding(bound.binding)
