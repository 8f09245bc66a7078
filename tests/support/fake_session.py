"""FakeSession: a session of the CPU provider that runs and captures as ONNX Runtime's CUDA provider does."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from support.fake_cudart import is_at_work, is_capturing

if TYPE_CHECKING:
    from support.fake_cuda import FakeCudaDevice

HOST_INPUTS = ("total_sequence_length", "first_output")


class FakeBinding:
    """What was bound; a run binds it anew to the CPU provider's session."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self._frozen: FrozenRun | None = None

    def bind_input(self, name: str, kind: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._bind(self.inputs, name, (kind, device_id), dtype, shape, address)

    def bind_output(self, name: str, kind: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._bind(self.outputs, name, (kind, device_id), dtype, shape, address)

    def _bind(
        self,
        bound: dict[str, Any],
        name: str,
        place: tuple[str, int],
        dtype: Any,
        shape: Any,
        address: int,
    ) -> None:
        device = self._session.device
        on_host = name in HOST_INPUTS
        expected = ("cpu", 0) if on_host else (device.kind, device.device_id)
        assert place == expected, f"{name} is bound to {place}, not to {expected}"
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        is_device = device.cudart.is_device(address, num_bytes)
        assert not num_bytes or is_device != on_host, (
            f"{name} ({num_bytes} bytes) {'is' if is_device else 'is not'} in this device's memory"
        )
        bound[name] = (dtype, tuple(shape), address)
        self._frozen = None

    def freeze(self) -> FrozenRun:
        """The run as bound now: addresses are fixed, values in CPU memory are not yet."""
        if self._frozen is None:
            self._frozen = FrozenRun(self._session.real, dict(self.inputs), dict(self.outputs))
        return self._frozen


class FrozenRun:
    """A run over fixed addresses, with the values in CPU memory given to it each time."""

    def __init__(self, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._session = session
        self._addresses = {name: inputs[name][2] for name in HOST_INPUTS if name in inputs}
        self._copies = {name: np.zeros(inputs[name][1], inputs[name][0]) for name in self._addresses}
        self._binding = session.io_binding()
        for name, (dtype, shape, address) in inputs.items():
            if name in self._copies:
                address = self._copies[name].ctypes.data
            self._binding.bind_input(name, "cpu", 0, dtype, shape, address)
        for name, (dtype, shape, address) in outputs.items():
            self._binding.bind_output(name, "cpu", 0, dtype, shape, address)

    def host_values(self) -> dict[str, bytes]:
        """What stands in CPU memory now."""
        return {
            name: ctypes.string_at(address, self._copies[name].nbytes)
            for name, address in self._addresses.items()
        }

    def run(self, host_values: dict[str, bytes]) -> None:
        for name, value in host_values.items():
            ctypes.memmove(self._copies[name].ctypes.data, value, len(value))
        self._session.run_with_iobinding(self._binding)


class FakeSession:
    """Runs on the fake's stream, captured ones as ONNX Runtime's CUDA provider does it.

    The run option gpu_graph_id counts where the session is a captured one: -1 runs as bound, another id
    (0 without the option) runs three times and captures, the first time, and is replayed afterwards. A
    replay reads nothing of the binding given, nor of CPU memory. With the run option
    disable_synchronize_execution_providers "1" runs and replays are queued, and so is a capture's third.
    """

    def __init__(self, device: FakeCudaDevice, real: Any, *, captured: bool) -> None:
        self.device: FakeCudaDevice = weakref.proxy(device)
        self.real = real
        self.captured = captured
        self.captures: dict[int, tuple[FrozenRun, dict[str, bytes]]] = {}
        self.num_runs = 0  # that were asked for
        self._thread: int | None = None  # the one that captures and replays
        self._failures: list[int] = []

    def fail(self, *, at: int = 1) -> None:
        """Let the at-th run from now on fail."""
        self._failures.append(self.num_runs + at)

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run_with_iobinding(self, binding: FakeBinding, run_options: Any = None) -> None:
        assert is_at_work(), "a run outside of at_work()"
        assert binding._session is self, "a binding of another session"
        assert self.device.is_open, "a run on a device that is closed"
        self.num_runs += 1
        if self.num_runs in self._failures:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered (injected)")
        graph_id = int(_option(run_options, "gpu_graph_id", "0")) if self.captured else -1
        if graph_id == -1:
            frozen = binding.freeze()
            host_values = frozen.host_values()
        else:
            assert self._thread in (None, threading.get_ident()), "captured on another thread"
            if graph_id not in self.captures:
                self._capture(graph_id, binding)
            frozen, host_values = self.captures[graph_id]
        self.device.cudart.queue(lambda: frozen.run(host_values))
        if _option(run_options, "disable_synchronize_execution_providers", "0") != "1":
            self.device.cudart.run_all()

    def _capture(self, graph_id: int, binding: FakeBinding) -> None:
        assert is_capturing(), f"gpu_graph_id {graph_id} is captured outside of capturing()"
        self._thread = threading.get_ident()
        frozen = binding.freeze()
        host_values = frozen.host_values()
        for _ in range(2):
            self.device.cudart.queue(lambda: frozen.run(host_values))
        self.device.cudart.run_all()  # a capture begins on an idle stream, and itself runs nothing
        self.captures[graph_id] = (frozen, host_values)


def _option(run_options: Any, name: str, default: str) -> str:
    if run_options is None:
        return default
    try:
        return str(run_options.get_run_config_entry(name))
    except RuntimeError:  # not set
        return default
