"""KVCache: where each array and slot lies, on the CPU and on a fake GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice, synchronize

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.kv_cache import KVCache

CONFIG = ModelConfig(
    n_layer=2, n_head=3, n_embd=12, n_inner=48, n_positions=8, vocab_size=10, layer_norm_epsilon=1e-5
)


@pytest.fixture(params=[CpuDevice, FakeCudaDevice])
def device(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_a_slots_bytes_are_those_of_all_layers(device: Any) -> None:
    cache = KVCache(device, CONFIG, num_slots=5, max_length=8, dtype="float16")
    assert cache.slot_shape == (3, 8, 4)
    assert cache.slot_bytes == KVCache.bytes_per_slot(CONFIG, 8, "float16") == 2 * 2 * 3 * 8 * 4 * 2
    assert KVCache.bytes_per_slot(CONFIG, 8, np.float32) == 2 * cache.slot_bytes


def test_each_array_begins_behind_all_slots_of_the_one_before(device: Any) -> None:
    cache = KVCache(device, CONFIG, num_slots=5, max_length=8, dtype=np.float32)
    addresses = cache.addresses(0)
    assert list(addresses) == ["key.0", "value.0", "key.1", "value.1"]
    slot = 3 * 8 * 4 * 4
    first = addresses["key.0"]
    assert [address - first for address in addresses.values()] == [0, 5 * slot, 10 * slot, 15 * slot]
    assert [cache.addresses(2)[name] - address for name, address in addresses.items()] == [2 * slot] * 4


def test_a_copy_reaches_every_layer_and_no_other_slot(device: Any) -> None:
    cache = KVCache(device, CONFIG, num_slots=3, max_length=8, dtype=np.float32)
    address = cache.addresses(0)["key.0"]
    memory = np.frombuffer((ctypes.c_char * (3 * cache.slot_bytes)).from_address(address), np.float32)
    memory = memory.reshape(4, 3, 3, 8, 4)
    with device.at_work():
        synchronize(device)
        memory[:] = np.arange(memory.size).reshape(memory.shape)
        expected = memory.copy()
        expected[:, 2, :, :5] = expected[:, 1, :, :5]
        cache.copy(source=1, target=2, length=5)
        synchronize(device)
    assert (memory == expected).all()
