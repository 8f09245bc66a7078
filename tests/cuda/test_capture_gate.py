"""Sections of device work of several threads, and captures, which no other thread works beside."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer.cuda.device import CudaDevice


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_section_makes_its_device_the_threads_current_one() -> None:
    first, second = FakeCudaDevice(0), FakeCudaDevice(1)
    with second.at_work(), first.at_work():
        first.memory()
    with second.at_work():
        second.memory()
    thread = in_thread(lambda: second.allocate(8) and None)
    thread.join(10)
    assert len(second.cudart.device_memory) == 1


def test_two_threads_work_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)

    def work(device: CudaDevice) -> None:
        with device.at_work():
            both.wait()

    devices = [FakeCudaDevice(i) for i in range(2)]
    threads = [in_thread(partial(work, device)) for device in devices]
    for thread in threads:
        thread.join(10)
    assert not both.broken


def test_nobody_works_during_a_capture() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    at_work, go_on, seen = threading.Event(), threading.Event(), []

    def work() -> None:
        with other.at_work():
            at_work.set()
            go_on.wait(10)
            seen.append("first section ends")
        with other.at_work():
            seen.append("second section")

    thread = in_thread(work)
    assert at_work.wait(10)
    threading.Timer(0.05, go_on.set).start()
    with device.capturing():  # waits for the first section, and keeps the second one waiting
        seen.append("capture begins")
        with device.at_work():
            device.stream.synchronize()
        thread.join(0.05)
        seen.append("capture ends")
    thread.join(10)
    assert seen == ["first section ends", "capture begins", "capture ends", "second section"]


def test_two_threads_that_want_to_capture_amid_their_work_do_so_in_turn() -> None:
    both, log = threading.Barrier(2, timeout=10), []

    def work(device: CudaDevice, name: str) -> None:
        with device.at_work():
            both.wait()
            with device.capturing():
                log.append(name)
                threading.Event().wait(0.01)
                log.append(name)
            device.stream.synchronize()

    threads = [in_thread(partial(work, FakeCudaDevice(i), str(i))) for i in range(2)]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert log in (["0", "0", "1", "1"], ["1", "1", "0", "0"])


def test_memory_that_is_let_go_of_during_a_capture_is_freed_behind_it() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    cudart = other.cudart
    other.allocate(8)
    assert gc.isenabled()
    with device.capturing():
        assert not gc.isenabled()
        del other
        assert cudart.device_memory
    assert gc.isenabled()
    assert not cudart.device_memory


def test_captures_and_work_of_many_threads_never_meet() -> None:
    working, capturing, seen = set(), set(), []

    def work(device: CudaDevice, seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            with device.at_work():
                working.add(seed)
                seen.append(bool(capturing))
                if random.random() < 0.1:
                    working.remove(seed)
                    with device.capturing():
                        capturing.add(seed)
                        seen.append(bool(working) or len(capturing) > 1)
                        time.sleep(0)
                        capturing.remove(seed)
                    working.add(seed)
                time.sleep(0)
                working.remove(seed)

    threads = [in_thread(partial(work, FakeCudaDevice(seed), seed)) for seed in range(4)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(seen) > 400
    assert not any(seen)


def test_an_error_in_a_capture_lets_the_others_go_on() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    with pytest.raises(ZeroDivisionError), device.capturing():
        _ = 1 / 0
    thread = in_thread(lambda: other.allocate(8) and None)
    thread.join(10)
    assert not thread.is_alive()
