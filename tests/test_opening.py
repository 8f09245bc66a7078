"""Devices by their names."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.fake_cuda import FakeCudaDevice
from support.fake_cudart import FakeCudart

from hgt_infer.errors import DeviceUnavailableError, ParameterError
from hgt_infer.opening import open_devices, verification_device


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "cuda:0 ", 3, ["cpu", 3], ["auto"]])
def test_an_unknown_device_is_named(name: Any) -> None:
    with pytest.raises(ParameterError, match="device must be"):
        open_devices(name)


@pytest.mark.parametrize("names", [[], (), None, {"cpu"}])
def test_what_is_no_list_of_names_is_refused(names: Any) -> None:
    with pytest.raises(ParameterError, match="a name or a list of at least one"):
        open_devices(names)


def test_devices_of_two_kinds_are_refused() -> None:
    with pytest.raises(ParameterError, match="of one kind"):
        open_devices(["cpu", "cuda"])


@pytest.mark.parametrize("names", [["cuda", "cuda:0"], ["cuda:1", "cuda:0", "cuda:1"]])
def test_a_gpu_can_be_named_once(names: list[str]) -> None:
    with pytest.raises(ParameterError, match="a GPU can be named once"):
        open_devices(names)


def test_the_cpu_can_be_named_several_times() -> None:
    assert [device.kind for device in open_devices(("cpu", "cpu", "cpu"))] == ["cpu"] * 3


def fake_gpus(monkeypatch: pytest.MonkeyPatch, num_devices: int) -> list[FakeCudart]:
    """Let load_cuda find so many GPUs; the stand-ins that it gave."""
    given: list[FakeCudart] = []

    def load_cuda(device_id: int) -> FakeCudart:
        if device_id >= num_devices:
            raise DeviceUnavailableError(f"no GPU {device_id}")
        given.append(FakeCudart(device_id, total_bytes=1 << 20))
        return given[-1]

    monkeypatch.setattr("hgt_infer.cuda.device.load_cuda", load_cuda)
    monkeypatch.setattr("hgt_infer.opening.count_cuda_devices", lambda: num_devices)
    return given


def test_gpus_are_opened_in_the_order_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 3)
    opened = open_devices(["cuda:2", "cuda:0"])
    assert [(device.name, device.kind, device.device_id) for device in opened] == [
        ("cuda:2", "cuda", 2),
        ("cuda:0", "cuda", 0),
    ]
    assert [device.name for device in open_devices("cuda")] == ["cuda:0"]


def test_where_one_gpu_fails_those_opened_before_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = fake_gpus(monkeypatch, 1)
    with pytest.raises(DeviceUnavailableError, match="no GPU 1"):
        open_devices(["cuda:0", "cuda:1"])
    assert "cudaStreamDestroy" in given[0].calls


@pytest.mark.parametrize(("num_gpus", "name"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_takes_the_first_gpu_or_the_cpu(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, name: str
) -> None:
    fake_gpus(monkeypatch, num_gpus)
    assert [device.name for device in open_devices("auto")] == [name]


def test_auto_says_why_it_does_not_take_a_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_gpus(monkeypatch, 0)
    monkeypatch.setattr("hgt_infer.opening.count_cuda_devices", lambda: 1)
    with caplog.at_level(logging.WARNING):
        assert open_devices("auto")[0].kind == "cpu"
    assert "there is a GPU: no GPU 0" in caplog.text


@pytest.mark.parametrize(
    ("precision", "num_gpus", "has_device"), [("fp16", 1, True), ("fp16", 0, False), ("fp32", 1, False)]
)
def test_an_fp16_export_is_checked_on_a_gpu_that_is_closed_behind_it(
    precision: str, num_gpus: int, has_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, closed = FakeCudaDevice(), []
    monkeypatch.setattr(gpu, "close", lambda: closed.append(True))
    monkeypatch.setattr("hgt_infer.opening.count_cuda_devices", lambda: num_gpus)
    monkeypatch.setattr("hgt_infer.opening.CudaDevice", lambda: gpu)
    with verification_device(precision) as device:
        assert device is (gpu if has_device else None)
        assert not closed
    assert bool(closed) is has_device
