"""ModelSession: the exported decoder on one device, its KV cache, and its bindings.

It computes logits and knows no sequences; the buffers that it reads and writes are its runner's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.runtime.device import Device
from hgt_infer.runtime.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class ModelBuffers:
    """What a run of B rows with S tokens each reads and writes: addresses on the device, and two host arrays.

    Attributes:
        input_ids, position_ids: int32 [B, S].
        seqlens_k: int32 [B], the position of each row's last token.
        logits: [B · P, V], of the last P tokens of each row, in the artifact's float_type.
        total_sequence_length: int32 [], at least the largest of seqlens_k + 1.
        first_output: int64 [1], S - P.
    """

    input_ids: int
    position_ids: int
    seqlens_k: int
    logits: int
    total_sequence_length: NDArray[np.int32]
    first_output: NDArray[np.int64]


class ModelSession:
    """The decoder and the cache of num_slots slots.

    Args:
        artifact: the exported model.
        device: where it runs.
        num_slots: sequences that can be in the cache at once.
        max_length: cache positions of a slot, prompt and output together.
        captured, memory_limit: see Device.open_session.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: Device,
        *,
        num_slots: int,
        max_length: int,
        captured: bool = False,
        memory_limit: int | None = None,
    ) -> None:
        self.session = device.open_session(artifact.model_path, captured=captured, memory_limit=memory_limit)
        self.cache = KVCache(
            device,
            artifact.config,
            num_slots=num_slots,
            max_length=max_length,
            dtype=artifact.float_type,
        )
        self._place = device.kind, device.device_id
        self._vocab_size = artifact.config.vocab_size
        self._logits_type = np.dtype(artifact.float_type).type

    def bind(
        self, buffers: ModelBuffers, *, num_rows: int, num_tokens: int, num_outputs: int, first_slot: int = 0
    ) -> Any:
        """Bind a run over slots first_slot … first_slot + num_rows - 1.

        Each row has num_tokens tokens, of which the last num_outputs give logits. The binding keeps no
        reference to the buffers.
        """
        binding = self.session.io_binding()

        def bind_input(name: str, shape: tuple[int, ...], address: int) -> None:
            binding.bind_input(name, *self._place, np.int32, shape, address)

        bind_input("input_ids", (num_rows, num_tokens), buffers.input_ids)
        bind_input("position_ids", (num_rows, num_tokens), buffers.position_ids)
        bind_input("seqlens_k", (num_rows,), buffers.seqlens_k)
        for name in ("total_sequence_length", "first_output"):
            array: NDArray[Any] = getattr(buffers, name)
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        logits_shape = (num_rows * num_outputs, self._vocab_size)
        binding.bind_output("logits", *self._place, self._logits_type, logits_shape, buffers.logits)
        # The same memory as past and as present: the graph appends to it in place.
        cache_type = self.cache.dtype.type
        cache_shape = (num_rows, *self.cache.slot_shape)
        for name, address in self.cache.addresses(first_slot).items():
            binding.bind_input(f"past_{name}", *self._place, cache_type, cache_shape, address)
            binding.bind_output(f"present_{name}", *self._place, cache_type, cache_shape, address)
        return binding

    def run(self, binding: Any, options: Any = None) -> None:
        """Run what was bound; options are ONNX Runtime's RunOptions."""
        self.session.run_with_iobinding(binding, options)


def run_options(graph_id: int, *, waits: bool) -> Any:
    """Options of a captured session's run: the graph to capture or replay, -1 for none; wait or not."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    if not waits:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
