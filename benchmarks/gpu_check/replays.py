"""The parts of a step by themselves: the model's captured graph and the sampler, run in a row and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.subject import Subject
from benchmarks.measure.checkpoints import SEED
from benchmarks.measure.comparison import Spread
from hgt_infer.cuda.memory import CapturedMemory
from hgt_infer.cuda.sampler import CLUSTER_SIZES, Sampler
from hgt_infer.cuda.slot_record import HOST_CONTROLLED, RECORD
from hgt_infer.runtime.model_session import ModelSession, run_options

NUM_REPLAYS = 50
CONTEXT = 100  # tokens in every row's cache
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
    """

    def __init__(self, subject: Subject, device: Any, *, num_rows: int) -> None:
        config = subject.artifact.config
        self.subject = subject
        self.device = device
        self.num_rows = num_rows
        self._parts: dict[str, Callable[[], Any]] = {}
        self._hosts: list[NDArray[Any]] = []  # stay as long as what is copied from them
        self._model: ModelSession | None = None
        self._eager: Callable[[], Any] | None = None
        self._max_length = config.n_positions
        memory = self._memory = CapturedMemory(subject.artifact, device, num_rows, self._max_length)
        self._places: dict[str, tuple[int, tuple[int, ...], Any]] = {
            "seqlens_k": (memory.state + memory.state_pitch, (num_rows,), np.int32),
            "logits": (memory.logits, (num_rows, config.vocab_size), subject.artifact.float_type),
            "token_ids": (memory.token_ids, (num_rows,), np.int32),
        }
        state = np.empty((2, num_rows), np.int32)
        state[0] = np.random.default_rng(SEED).integers(0, 256, num_rows)
        state[1] = min(CONTEXT, self._max_length - 1) - 1
        self._write(memory.state, state)

    def _write(self, address: int, values: NDArray[Any]) -> None:
        host = self.device.pinned(values.shape, values.dtype)
        host[...] = values
        self._hosts.append(host)
        with self.device.at_work():
            self.device.stream.copy_to_device(address, host)
            self.device.stream.synchronize()

    def open_model(self) -> None:
        """Open the session; its first run is to be in capture."""
        artifact, sizes = self.subject.artifact, {"num_slots": self.num_rows, "max_length": self._max_length}
        self._model = ModelSession(artifact, self.device, captured=True, **sizes)
        buffers = self._memory.step_buffers()
        binding = self._model.bind(buffers, num_rows=self.num_rows, num_tokens=1, num_outputs=1)
        options = run_options(GRAPH_ID, waits=False)
        self._parts["model"] = partial(self._model.run, binding, options)
        self._eager = partial(self._model.run, binding, run_options(-1, waits=False))

    def run_eagerly(self) -> None:
        """Queue a run of the model that is neither captured nor replayed."""
        assert self._eager is not None, "the model is not open"
        self._eager()

    def open_sampler(
        self, name: str, *, cluster_sizes: Sequence[int] = CLUSTER_SIZES, **settings: float
    ) -> None:
        """Compile the sampler under a name of one's own, with these settings in every row."""
        rows = records(self.num_rows, settings)
        address = self.device.allocate(rows.nbytes)
        self._write(address, rows)
        addresses = self._memory.sampler_arguments()
        addresses[addresses.index(self._memory.records)] = address
        artifact = self.subject.artifact
        sampler = Sampler(
            self.device,
            artifact.config.vocab_size,
            artifact.float_type,
            addresses,
            cluster_sizes=cluster_sizes,
        )
        self._parts[name] = partial(sampler.launch, self.num_rows)

    def capture(self) -> None:
        """Capture the model's graph, and run every sampler once."""
        with self.device.capturing():
            self._parts["model"]()
            self.device.stream.synchronize()
        self.run_all(1)

    def time(self, name: str, *, num_rounds: int, warmup_s: float, num_replays: int | None = None) -> Replay:
        """Run one part in a row, for warmup_s before it counts: an idle GPU's clocks are low.

        Each round waits once, behind its last run.
        """
        num_replays = num_replays or NUM_REPLAYS
        run = self._parts[name]
        seconds, launches = [], []
        with self.device.at_work():
            end_s = time.perf_counter() + warmup_s
            while time.perf_counter() < end_s:
                for _ in range(num_replays):
                    run()
                self.device.stream.synchronize()
            for _ in range(num_rounds):
                start_s = time.perf_counter()
                for _ in range(num_replays):
                    run()
                launches.append((time.perf_counter() - start_s) / num_replays)
                self.device.stream.synchronize()
                seconds.append((time.perf_counter() - start_s) / num_replays)
        return Replay(name, self.num_rows, seconds, min(launches))

    def run(self, name: str) -> None:
        """Run one part, and wait for it."""
        with self.device.at_work():
            self._parts[name]()
            self.device.stream.synchronize()

    def run_all(self, num_times: int) -> None:
        """Every part that is open in turn, for a profiler to look at."""
        with self.device.at_work():
            for _ in range(num_times):
                for run in self._parts.values():
                    run()
            self.device.stream.synchronize()

    def read(self, name: str) -> NDArray[Any]:
        """What stands on the device: seqlens_k, logits or token_ids."""
        address, shape, dtype = self._places[name]
        host: NDArray[Any] = self.device.pinned(shape, dtype)
        with self.device.at_work():
            self.device.stream.copy_to_host(host, address)
            self.device.stream.synchronize()
        return host

    def close(self) -> None:
        """Let go of the session; its device is closed behind it."""
        self._parts.clear()
        self._model = self._eager = None


@contextmanager
def open_parts(subject: Subject, num_rows: int) -> Iterator[StepParts]:
    """The model, open but not captured."""
    with subject.open_device() as device, closing(StepParts(subject, device, num_rows=num_rows)) as parts:
        parts.open_model()
        yield parts


@contextmanager
def step_parts(subject: Subject, num_rows: int) -> Iterator[StepParts]:
    """The model, captured, and the sampler with top_k 50, with top_p 0.95 alone, and with no filter."""
    with open_parts(subject, num_rows) as parts:
        parts.open_sampler("top_k 50", top_k=50)
        parts.open_sampler("top_p 0.95", top_p=0.95)
        parts.open_sampler("temperature 1")
        parts.capture()
        yield parts


def records(num_rows: int, settings: dict[str, float]) -> NDArray[Any]:
    """Records of sequences that sample and wait, each with random numbers of its own."""
    rows = np.zeros(num_rows, RECORD)
    values = {"temperature": 1.0, "top_p": 1.0, "prompt_length": 1, "mode": HOST_CONTROLLED, **settings}
    for name, value in values.items():
        rows[name] = value
    rows["seed"] = SEED
    rows["sample_index"] = np.arange(num_rows)
    rows["eos_token_ids"] = rows["fed_tokens"] = -1
    return rows
