"""KernelSession: the exported decoder in our own operators on a CPU, its KV cache, and its bindings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import KERNEL_CACHE_TYPES, Artifact
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.kv_cache import KVCache
from hgt_infer.runtime.model_session import ModelBuffers


@dataclass(frozen=True)
class _Binding:
    """ONNX Runtime's binding, and the arrays that it reads beside the runner's."""

    binding: Any
    slots: NDArray[np.int32]
    output_tokens: NDArray[np.int32]


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
        self.cache = KVCache(
            device,
            artifact.config,
            num_slots=num_slots,
            max_length=max_length,
            dtype=KERNEL_CACHE_TYPES[artifact.precision],
        )
        self._vocab_size = artifact.config.vocab_size

    def bind(
        self, buffers: ModelBuffers, *, num_rows: int, num_tokens: int, num_outputs: int, first_slot: int = 0
    ) -> _Binding:
        """As ModelSession.bind: rows are slots, and their tokens follow each other."""
        token = np.arange(num_rows * num_tokens, dtype=np.int32).reshape(num_rows, num_tokens)
        bound = _Binding(
            self.session.io_binding(),
            slots=first_slot + token.reshape(-1) // num_tokens,
            output_tokens=token[:, num_tokens - num_outputs :].reshape(-1).copy(),
        )

        def bind_input(name: str, dtype: Any, shape: tuple[int, ...], address: int) -> None:
            bound.binding.bind_input(name, "cpu", 0, dtype, shape, address)

        bind_input("input_ids", np.int32, (token.size,), buffers.input_ids)
        bind_input("position_ids", np.int32, (token.size,), buffers.position_ids)
        bind_input("slots", np.int32, bound.slots.shape, bound.slots.ctypes.data)
        bind_input("output_tokens", np.int32, bound.output_tokens.shape, bound.output_tokens.ctypes.data)
        bind_input("cache", self.cache.dtype.type, self.cache.shape, self.cache.address)
        logits_shape = (len(bound.output_tokens), self._vocab_size)
        bound.binding.bind_output("logits", "cpu", 0, np.float32, logits_shape, buffers.logits)
        return bound

    def run(self, bound: _Binding) -> None:
        """Run what was bound."""
        self.session.run_with_iobinding(bound.binding)
