"""The parts of a step by themselves: the model's captured graph and the sampler, run in a row and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.comparison import Spread
from benchmarks.gpu_check.subject import SEED, Subject
from hgt_infer.artifact import PRECISIONS
from hgt_infer.captured_runner import BLOCK_SIZE, SAMPLER
from hgt_infer.slot_record import RECORD, WAITS

NUM_REPLAYS = 50
CONTEXT = 100
GRAPH_ID = 1


@dataclass(frozen=True)
class Replay:
    """The time of a part. seconds: of each replay, by round. launch_s: what the host takes to queue one."""

    name: str
    num_rows: int
    seconds: list[float]
    launch_s: float

    @property
    def spread_us(self) -> Spread:
        return Spread.of([1e6 * seconds for seconds in self.seconds])


class StepParts:
    """The model and the sampler over device memory of their own, for one number of rows.

    The sampler reads what the model wrote. Its rows wait for the host, so that every run does the same.

    Args:
        subject: its artifact is opened.
        device: a CudaDevice.
        num_rows: of the step.
        context: tokens in every row's cache.
    """

    def __init__(self, subject: Subject, device: Any, *, num_rows: int, context: int = CONTEXT) -> None:
        self.subject = subject
        self.device = device
        self.num_rows = num_rows
        self._session: Any = None
        self._binding: Any = None
        self._parts: dict[str, Callable[[], Any]] = {}
        config = subject.artifact.config
        self._max_length = config.n_positions
        self._hosts: list[NDArray[Any]] = []  # stay as long as what is bound to them
        rows = (num_rows,)
        self._addresses: dict[str, int] = {}
        self._types: dict[str, tuple[Any, tuple[int, ...]]] = {}
        rng = np.random.default_rng(SEED)
        self._put("input_ids", rng.integers(0, 256, (num_rows, 1)).astype(np.int32))
        self._put("seqlens_k", np.full(rows, min(context, self._max_length - 1) - 1, np.int32))
        self._allocate("logits", (num_rows, config.vocab_size), np.float32)
        self._allocate("token_ids", rows, np.int32)
        for name in ("logit_bias", "repetition_penalty", "token_counts"):
            self._allocate(name, (num_rows, config.vocab_size), np.float32)
        self._cache_shape = (num_rows, config.n_head, self._max_length, config.n_embd // config.n_head)
        self._cache_type = np.dtype(PRECISIONS[subject.artifact.precision])
        for layer in range(config.n_layer):
            for kind in ("key", "value"):
                self._allocate(f"{kind}.{layer}", self._cache_shape, self._cache_type)
        self._total = np.array(self._max_length, np.int32)
        self._first_output = np.zeros(1, np.int64)

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._addresses[name] = self.device.allocate(num_bytes)
        self._types[name] = (np.dtype(dtype).type, shape)

    def _put(self, name: str, values: NDArray[Any]) -> None:
        self._allocate(name, values.shape, values.dtype)
        host = self.device.pinned(values.shape, values.dtype)
        host[...] = values
        self._hosts.append(host)
        with self.device.at_work():
            self.device.copy_to_device(self._addresses[name], host)
            self.device.synchronize()

    def _bind(self, binding: Any, name: str, *, of: str = "", is_output: bool = False) -> None:
        """Bind a name of the graph to the memory called `of`, or like it."""
        dtype, shape = self._types[of or name]
        if name == "position_ids":
            shape = (self.num_rows, 1)
        bind = binding.bind_output if is_output else binding.bind_input
        bind(name, self.device.kind, self.device.device_id, dtype, shape, self._addresses[of or name])

    def open_model(self) -> None:
        session = self.device.open_session(self.subject.artifact.model_path, captured=True)
        binding = session.io_binding()
        self._bind(binding, "input_ids")
        self._bind(binding, "position_ids", of="seqlens_k")
        self._bind(binding, "seqlens_k")
        binding.bind_input("total_sequence_length", "cpu", 0, np.int32, (), self._total.ctypes.data)
        binding.bind_input("first_output", "cpu", 0, np.int64, (1,), self._first_output.ctypes.data)
        self._bind(binding, "logits", is_output=True)
        for layer in range(self.subject.artifact.config.n_layer):
            for kind in ("key", "value"):
                self._bind(binding, f"past_{kind}.{layer}", of=f"{kind}.{layer}")
                self._bind(binding, f"present_{kind}.{layer}", of=f"{kind}.{layer}", is_output=True)
        self._session, self._binding = session, binding
        self._parts["model"] = partial(session.run_with_iobinding, binding, run_options())

    def open_sampler(self, name: str, **settings: float) -> None:
        """Compile the sampler under a name of one's own, with these settings in every row."""
        self._put(f"records {name}", records(self.num_rows, settings))
        names = ("logits", "input_ids", "seqlens_k", f"records {name}")
        tables = ("logit_bias", "repetition_penalty", "token_counts")
        kernel = self.device.kernel(
            SAMPLER,
            "sample",
            block_size=BLOCK_SIZE,
            defines={"VOCAB_SIZE": self.subject.artifact.config.vocab_size},
            addresses=[self._addresses[own] for own in (*names, *tables, "token_ids")],
        )
        self._parts[name] = partial(kernel.launch, self.num_rows)

    def capture(self) -> None:
        """Capture the model's graph, and run every sampler once."""
        with self.device.capturing():
            self._session.run_with_iobinding(self._binding, run_options())
            self.device.synchronize()
        self.run_all(1)

    def time(self, name: str, *, num_rounds: int, num_replays: int | None = None) -> Replay:
        """Run one part in a row; each round waits once, behind its last run."""
        num_replays = num_replays or NUM_REPLAYS
        run = self._parts[name]
        seconds, launches = [], []
        with self.device.at_work():
            for _ in range(num_rounds + 1):
                start_s = time.perf_counter()
                for _ in range(num_replays):
                    run()
                launches.append((time.perf_counter() - start_s) / num_replays)
                self.device.synchronize()
                seconds.append((time.perf_counter() - start_s) / num_replays)
        return Replay(name, self.num_rows, seconds[1:], min(launches[1:]))

    def run_all(self, num_times: int) -> None:
        """Every part that is open in turn, for a profiler to look at."""
        with self.device.at_work():
            for _ in range(num_times):
                for run in self._parts.values():
                    run()
            self.device.synchronize()

    def read(self, name: str) -> NDArray[Any]:
        """What stands in the memory of that name."""
        dtype, shape = self._types[name]
        host: NDArray[Any] = self.device.pinned(shape, dtype)
        with self.device.at_work():
            self.device.copy_to_host(host, self._addresses[name])
            self.device.synchronize()
        return host

    def close(self) -> None:
        """Let go of the session; its device is closed behind it."""
        self._parts.clear()
        self._session = self._binding = None


@contextmanager
def step_parts(subject: Subject, num_rows: int) -> Iterator[StepParts]:
    """The model, captured, and the sampler with top_k 50, with top_p 0.95 alone, and with no filter."""
    with subject.open_device() as device:
        parts = StepParts(subject, device, num_rows=num_rows)
        try:
            parts.open_model()
            parts.open_sampler("top_k 50", top_k=50)
            parts.open_sampler("top_p 0.95", top_p=0.95)
            parts.open_sampler("temperature 1")
            parts.capture()
            yield parts
        finally:
            parts.close()


def run_options() -> Any:
    """Replay GRAPH_ID, or capture it, and do not wait for it."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(GRAPH_ID))
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def records(num_rows: int, settings: dict[str, float]) -> NDArray[Any]:
    """Records of sequences that sample and wait, each with random numbers of its own."""
    rows = np.zeros(num_rows, RECORD)
    values = {"temperature": 1.0, "top_p": 1.0, "prompt_length": 1, "holds": WAITS, **settings}
    for name, value in values.items():
        rows[name] = value
    rows["seed"] = SEED
    rows["sample_index"] = np.arange(num_rows)
    rows["eos_token_ids"] = rows["fed_tokens"] = -1
    return rows
