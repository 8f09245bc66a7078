"""A tiny checkpoint to check, on the CPU and on a stand-in for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.check_results import SIZES
from support.fake_cuda import FakeCudaDevice

from benchmarks.gpu_check import correctness
from benchmarks.gpu_check.scale import TRIAL
from benchmarks.gpu_check.subject import Subject
from benchmarks.measure.checkpoints import write_numpy_checkpoint
from hgt_infer.runtime.device import CpuDevice


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numpy_checkpoint(tmp_path_factory.mktemp("gpu_check") / "checkpoint", SIZES)


@pytest.fixture(scope="session")
def subject(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(checkpoint, tmp_path_factory.mktemp("gpu_check"), "cpu", TRIAL)


@pytest.fixture
def fake(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The subject on a stand-in for a GPU, which takes the fp32 graphs; all of its devices are one GPU."""
    opened: list[FakeCudaDevice] = []

    def open_fakes(name: str, *, num_threads: int = 0, cache_dir: Any = None) -> list[Any]:
        if name == "cpu":
            return [CpuDevice()]
        assert name == "cuda"
        others = sum(block.nbytes for d in opened for block in d.cudart.device_memory.values())
        opened.append(FakeCudaDevice(total_bytes=2 << 30, pace=len(opened)))
        opened[-1].cudart.other_bytes = others
        return [opened[-1]]

    monkeypatch.setattr(correctness, "DRAW_SLOTS", 16)
    monkeypatch.setattr("hgt_infer.opening.open_devices", open_fakes)
    monkeypatch.setattr("benchmarks.gpu_check.subject.open_devices", open_fakes)
    fake = Subject(subject.model, subject.folder, "cuda", TRIAL, precision="fp32")
    fake.artifact = fake.reference = subject.artifact
    return fake
