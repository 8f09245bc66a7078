"""KVCache: the keys and values of every slot, allocated once in the device's memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.runtime.device import Device


class KVCache:
    """One buffer [2 · n_layer, num_slots, n_head, max_length, head_size]: key.0, value.0, key.1, …

    Of each layer's array a range of slots is one contiguous piece, which a run binds as its whole
    cache, and the graph writes into it in place. A slot's prefix is copied in all layers by one call.

    Attributes:
        dtype: of keys and values.
        slot_shape: a slot of one array [n_head, max_length, head_size].
        slot_bytes: a slot in all arrays.
    """

    def __init__(
        self, device: Device, config: ModelConfig, *, num_slots: int, max_length: int, dtype: DTypeLike
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.slot_shape = (config.n_head, max_length, config.head_size)
        self.slot_bytes = self.bytes_per_slot(config, max_length, dtype)
        self._num_slots = num_slots
        self._names = [f"{kind}.{layer}" for layer in range(config.n_layer) for kind in ("key", "value")]
        self._array = device.cache((len(self._names), num_slots, *self.slot_shape), self.dtype)

    @staticmethod
    def bytes_per_slot(config: ModelConfig, max_length: int, dtype: DTypeLike) -> int:
        """Keys and values of max_length tokens in all layers."""
        return 2 * config.n_layer * config.n_embd * max_length * np.dtype(dtype).itemsize

    def addresses(self, slot: int) -> dict[str, int]:
        """Address of each array from a slot on, by its name in the graph ("key.0", "value.0", …)."""
        stride = self.slot_bytes // len(self._names)  # from a slot to the next
        first = self._array.address + slot * stride
        return {name: first + i * self._num_slots * stride for i, name in enumerate(self._names)}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        self._array.copy_prefix(source, target, length)
