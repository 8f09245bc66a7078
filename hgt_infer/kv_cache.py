"""KVCache: the keys and values of every slot, allocated once in the device's memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hgt_infer.device import Device
from hgt_infer.model_config import ModelConfig


class KVCache:
    """Two arrays [num_slots, n_head, max_length, head_size] per layer.

    The slot is the outermost dimension: a range of slots is one contiguous piece, which a run binds
    as its whole cache, and the graph writes into it in place.
    """

    def __init__(
        self, device: Device, config: ModelConfig, *, num_slots: int, max_length: int, dtype: DTypeLike
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.slot_shape = (config.n_head, max_length, config.head_size)
        self.slot_bytes = int(np.prod(self.slot_shape)) * self.dtype.itemsize
        self.arrays = {
            f"{kind}.{layer}": device.cache_array((num_slots, *self.slot_shape), dtype)
            for layer in range(config.n_layer)
            for kind in ("key", "value")
        }
        self.num_bytes = len(self.arrays) * num_slots * self.slot_bytes

    def addresses(self, slot: int) -> dict[str, int]:
        """Address of each array from a slot on, by its name in the graph ("key.0", "value.0", …)."""
        return {name: array.address + slot * self.slot_bytes for name, array in self.arrays.items()}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        for array in self.arrays.values():
            array.copy_prefix(source, target, length)
