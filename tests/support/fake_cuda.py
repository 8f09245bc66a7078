"""FakeCudaDevice: a CudaDevice in host memory, over a stand-in for the CUDA runtime (`fake_cudart`).

Its sessions are the CPU provider's (`fake_session`), its kernels are compiled for the host (`host_kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from support.fake_cudart import MAX_SHARED_BYTES, FakeCudart, is_at_work
from support.fake_session import FakeSession
from support.host_kernel import HostKernel, host_kernel

from hgt_infer.cuda.device import CudaDevice
from hgt_infer.runtime.device import CpuDevice, Device


class FakeCudaDevice(CudaDevice):
    """A CudaDevice in host memory; its bindings are of kind "cpu".

    Args:
        device_id: its number; several of them are several GPUs.
        total_bytes: of its memory.
        pace: when queued work runs: "late", "early", or a seed for something in between.

    Attributes:
        cudart: the stand-in: `cudart.fail("cudaMalloc", at=2, status=2)`, `cudart.calls`, …
        sessions: all that were opened.
    """

    kind = "cpu"

    def __init__(self, device_id: int = 0, *, total_bytes: int = 1 << 32, pace: str | int = "late") -> None:
        super().__init__(device_id, cudart=FakeCudart(device_id, total_bytes=total_bytes, pace=pace))
        self.sessions: list[FakeSession] = []

    @property
    def is_open(self) -> bool:
        """Whether it is not closed yet."""
        return self._finalizer.alive

    def open_session(self, path: Path, *, captured: bool = False, memory_limit: int | None = None) -> Any:
        """A session of the CPU provider that runs on the fake's stream; see FakeSession."""
        with self.at_work():
            self.sessions.append(FakeSession(self, CpuDevice().open_session(path), captured=captured))
        return self.sessions[-1]

    def kernel(
        self,
        path: Path,
        name: str,
        *,
        block_size: int,
        defines: Mapping[str, int],
        addresses: Sequence[int],
    ) -> FakeKernel:
        """See CudaDevice; block_size is 1: a kernel's results do not depend on it."""
        for address in addresses:
            assert self.cudart.is_device(address, 1), "an argument that is no device memory"
        kernel = FakeKernel(self.cudart, host_kernel(path, name, defines=defines), list(addresses))
        self._owned.kernels.append(kernel)  # type: ignore[arg-type]
        return kernel


class FakeKernel:
    """A kernel that g++ compiled for the host, launched on the fake's stream.

    The fake runs clusters of one block alone: more threads on the host are slower, and change no result.
    """

    def __init__(self, cudart: FakeCudart, run: HostKernel, addresses: list[int]) -> None:
        self._cudart = cudart
        self._run = run
        self._addresses = addresses

    def max_active_clusters(self, cluster_size: int, shared_bytes: int) -> int:
        """See CudaKernel."""
        assert is_at_work(), "a call of the driver outside of at_work()"
        return int(cluster_size == 1)

    def launch(self, num_rows: int, *, cluster_size: int, shared_bytes: int) -> None:
        """Queue a run."""
        assert is_at_work(), "a launch outside of at_work()"
        assert shared_bytes <= MAX_SHARED_BYTES
        run = partial(
            self._run, num_rows, self._addresses, cluster_size=cluster_size, shared_bytes=shared_bytes
        )
        self._cudart.queue(run)

    def close(self) -> None:
        """See CudaKernel."""
        assert self._cudart.num_pending == 0, "unloaded while it may run"


def synchronize(device: Device) -> None:
    """Wait for everything that was queued; a CPU queues nothing."""
    if isinstance(device, CudaDevice):
        device.stream.synchronize()
