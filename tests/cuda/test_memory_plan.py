"""How many slots fit a GPU's memory."""

from __future__ import annotations

import re

import pytest

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.cuda.memory_plan import (
    BUCKETS,
    RESERVE_BYTES,
    bytes_per_slot,
    model_memory_limit,
    plan_slots,
)
from hgt_infer.cuda.slot_record import RECORD
from hgt_infer.errors import DeviceMemoryError
from hgt_infer.runtime.kv_cache import KVCache

GPT2 = ModelConfig(12, 12, 768, 3072, 1024, 50257, 1e-5)
GPT2_XL = ModelConfig(48, 25, 1600, 6400, 1024, 50257, 1e-5)
GIB = 1 << 30


def plan(gib: float, *, max_length: int = 1024, num_slots: int | None = None) -> int:
    """Slots of GPT-2 124M in fp16 that fit so much free memory."""
    return plan_slots(
        GPT2,
        "float16",
        max_length=max_length,
        free_bytes=int(gib * GIB),
        weight_bytes=248 << 20,
        num_slots=num_slots,
    )


def test_a_slot_is_its_cache_its_record_and_four_rows_of_the_vocabulary() -> None:
    cache = KVCache.bytes_per_slot(GPT2, 1024, "float16")
    assert cache == 36_864 * 1024
    assert bytes_per_slot(GPT2, 1024, "float16") - cache == RECORD.itemsize + (3 * 4 + 2) * 50257 + 1024


def test_more_memory_never_gives_fewer_slots() -> None:
    slots = [plan(gib) for gib in (3, 4, 6, 8, 12, 16, 24, 40, 80, 140)]
    assert slots == sorted(slots)
    assert set(slots) <= set(BUCKETS)
    assert slots[0] >= 1
    assert slots[-1] == 256


def test_shorter_slots_are_more() -> None:
    assert plan(6, max_length=128) > plan(6)


def test_what_was_planned_fits_with_everything_else() -> None:
    for gib in (3, 6, 12, 24):
        slots = plan(gib)
        model = model_memory_limit(GPT2, "float16", num_slots=slots, max_length=1024, weight_bytes=248 << 20)
        assert slots * bytes_per_slot(GPT2, 1024, "float16") + model <= gib * GIB - GIB


def test_a_number_that_was_asked_for_becomes_its_bucket() -> None:
    assert [plan(80, num_slots=n) for n in (1, 2, 3, 16, 17, 200, 256)] == [1, 2, 4, 16, 32, 256, 256]


def test_too_many_slots_are_told_how_many_would_fit() -> None:
    fitting = plan(6)
    with pytest.raises(
        DeviceMemoryError, match=rf"256 slot\(s\).*6,442,450,944 are free: num_slots={fitting} "
    ):
        plan(6, num_slots=200)


def test_where_not_one_slot_fits_the_longest_that_would_is_told() -> None:
    def needed(length: int) -> int:
        return plan_bytes(length) + bytes_per_slot(GPT2_XL, length, "float16")

    def plan_bytes(length: int) -> int:
        return model_memory_limit(GPT2_XL, "float16", num_slots=1, max_length=length, weight_bytes=0)

    with pytest.raises(DeviceMemoryError, match="one slot of max_length=") as caught:
        plan_slots(GPT2_XL, "float16", max_length=1024, free_bytes=needed(700) + RESERVE_BYTES)
    match = re.search(r"max_length=(\d+) would fit", str(caught.value))
    assert match is not None
    assert int(match[1]) == 700


def test_where_the_model_itself_does_not_fit_nothing_is_promised() -> None:
    with pytest.raises(DeviceMemoryError, match="nothing of it fits"):
        plan(0.5)
