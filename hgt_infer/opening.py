"""From a model's name and a device's to what an engine runs: devices, precision, runners, slots."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from hgt_infer.artifact.folder import Artifact
from hgt_infer.checks import check_bool, check_int, shown
from hgt_infer.cuda.cudart import count_cuda_devices
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.runner import CapturedRunner
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.device_worker import DeviceWorker
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.waiting_queue import WaitingQueue
from hgt_infer.errors import DeviceUnavailableError, ParameterError
from hgt_infer.loading import load_artifact
from hgt_infer.runtime.cpu_features import check_int8
from hgt_infer.runtime.device import CpuDevice, Device
from hgt_infer.runtime.kv_cache import KVCache
from hgt_infer.runtime.runner import ModelRunner

logger = logging.getLogger(__name__)

MAX_NUM_SLOTS = {"cpu": 4096, "cuda": 256}
DEFAULT_CPU_SLOTS = 16
MAX_NUM_THREADS = 1024
MAX_STEPS_PER_SYNC = 64
DEFAULT_STEPS_PER_SYNC = 4
"""Two blocks of two steps. By arithmetic, not yet by measurement: the host has the time of two steps to
examine one block, and a sequence that ends wastes three rows at most."""

PRECISIONS_OF = {"cpu": ("fp32", "int8"), "cuda": ("fp16",)}
"""What a kind of device computes in; the first is the default."""


@dataclass(frozen=True)
class OpenedModel:
    """A model on its devices.

    Attributes:
        artifact: the exported model, in the precision of the devices.
        max_length: tokens that a sequence can hold.
        device_names: as `open_devices` takes them.
        kernels: whose operators compute: an instruction set of `hgt_infer.kernels`, "onnxruntime" or "cuda".
        workers: one per device; they share one waiting queue.
    """

    artifact: Artifact
    max_length: int
    device_names: list[str]
    kernels: str
    workers: list[DeviceWorker]


def open_model(
    model: str | os.PathLike[str],
    *,
    device: str | Sequence[str],
    precision: str,
    num_slots: int | str,
    max_length: int | None,
    batch_invariant: bool,
    steps_per_sync: int | None,
    num_threads: int | None,
    cache_dir: str | os.PathLike[str] | None,
) -> OpenedModel:
    """Open a model on devices, after checking every argument; arguments and errors are Generator's."""
    auto_slots = isinstance(num_slots, str) and num_slots == "auto"
    asked_slots = None if auto_slots else check_int("num_slots", num_slots, 1, max(MAX_NUM_SLOTS.values()))
    if max_length is not None:
        check_int("max_length", max_length, 2)
    check_bool("batch_invariant", batch_invariant)
    if steps_per_sync is not None:
        check_int("steps_per_sync", steps_per_sync, 1, MAX_STEPS_PER_SYNC)
    if num_threads is not None:
        check_int("num_threads", num_threads, 1, MAX_NUM_THREADS)
    devices = open_devices(device, num_threads=num_threads or 0, cache_dir=cache_dir)
    kind = devices[0].kind
    if asked_slots is not None:
        check_int("num_slots", asked_slots, 1, MAX_NUM_SLOTS[kind])
    artifact = _load(model, kind, precision, cache_dir)
    n_positions = artifact.config.n_positions
    if max_length is not None:
        check_int("max_length", max_length, 2, n_positions)
    waiting = WaitingQueue()
    max_length, steps_per_sync = max_length or n_positions, steps_per_sync or DEFAULT_STEPS_PER_SYNC
    kernels = _kernels(artifact, devices[0])
    workers = []
    for one in devices:
        if isinstance(one, CudaDevice):
            captured = CapturedRunner(
                artifact,
                one,
                num_slots=asked_slots,
                max_length=max_length,
                steps_per_sync=steps_per_sync,
                batch_invariant=batch_invariant,
            )
            scheduler = Scheduler(
                captured.num_slots,
                waiting,
                max_fed_tokens=MAX_FED_TOKENS,
                closes_gaps=False,
                shares_prefills=not batch_invariant,  # else a prefill's shape is the prompt's own
            )
            workers.append(DeviceWorker(captured, scheduler))
            slot_bytes = KVCache.bytes_per_slot(artifact.config, max_length, artifact.float_type)
        else:
            num_slots = asked_slots or DEFAULT_CPU_SLOTS
            eager = ModelRunner(artifact, one, num_slots=num_slots, max_length=max_length)
            scheduler = Scheduler(num_slots, waiting, mixes_prompts=eager.mixes_prompts)
            workers.append(DeviceWorker(eager, scheduler))
            slot_bytes = eager.cache.slot_bytes
        logger.info(
            "%s on %s in %s, kernels of %s: %d slots of %d positions, %.0f MB of cache",
            artifact.path,
            one.name,
            artifact.precision,
            kernels,
            scheduler.num_slots,
            max_length,
            scheduler.num_slots * slot_bytes / 1e6,
        )
    return OpenedModel(artifact, max_length, [one.name for one in devices], kernels, workers)


def _kernels(artifact: Artifact, device: Device) -> str:
    """Whose operators run an artifact on a device; int8 is refused where ONNX Runtime's are not exact."""
    if not isinstance(device, CpuDevice):
        return "cuda"
    if device.kernels is not None and artifact.has_kernel_graphs:
        return device.kernels.instruction_set
    if artifact.precision == "int8":
        check_int8()
    return "onnxruntime"


def _load(
    model: str | os.PathLike[str], kind: str, precision: str, cache_dir: str | os.PathLike[str] | None
) -> Artifact:
    """Load the model in a precision that a kind of device computes in."""
    precisions = PRECISIONS_OF[kind]
    if precision not in ("auto", *precisions):
        allowed = ", ".join(map(repr, ("auto", *precisions)))
        raise ParameterError(f"precision must be one of {allowed} on {kind}; got {shown(precision)}")
    is_auto = precision == "auto"
    artifact = load_artifact(
        model,
        precision=precisions[0] if is_auto else precision,
        or_of_artifact=precisions if is_auto else (),
        cache_dir=cache_dir,
        open_device=verification_device,
    )
    if is_auto and artifact.precision == "fp32":
        logger.info("precision='auto' took fp32, as transformers has it; 'int8' is faster on a CPU")
    return artifact


@contextmanager
def verification_device(precision: str) -> Iterator[Device | None]:
    """The first GPU for the check of an fp16 export, where there is one, closed afterwards; else None."""
    if precision == "fp16" and count_cuda_devices():
        with closing(CudaDevice()) as device:
            yield device
    else:
        yield None


def open_devices(
    device: str | Sequence[str],
    *,
    num_threads: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> list[Device]:
    """The devices called "cpu", "cuda" (the first GPU), "cuda:N" or "auto", or several of one kind.

    Args:
        device: a name, or a list of at least one of "cpu", "cuda" and "cuda:N", of one kind; "cpu" may
            come several times. "auto" is the first GPU where CUDA can be used, else the CPU, with a
            warning where there is a GPU that cannot be used.
        num_threads: of a step on a CPU; 0 is one for each physical core.
        cache_dir: where compiled kernels are kept; see cache_folder.

    Raises:
        ParameterError: another name, several kinds, or a GPU twice.
        DeviceUnavailableError: CUDA was asked for and cannot be used.

    >>> [device.name for device in open_devices(["cpu", "cpu"])]
    ['cpu', 'cpu']
    """
    if isinstance(device, str) and device == "auto":
        return [_open_best(num_threads, cache_dir)]
    names = [device] if isinstance(device, str) else device
    if not isinstance(names, Sequence) or not names:
        raise ParameterError(f"device must be a name or a list of at least one; got {shown(device)}")
    gpu_ids = [_gpu_id(name) for name in names]
    if len({gpu_id is None for gpu_id in gpu_ids}) > 1:
        raise ParameterError(f"devices must be of one kind; got {shown(list(names))}")
    if gpu_ids[0] is not None and len(set(gpu_ids)) < len(gpu_ids):
        raise ParameterError(f"a GPU can be named once; got {shown(list(names))}")
    opened: list[Device] = []
    try:
        opened.extend(
            CpuDevice(num_threads) if gpu_id is None else CudaDevice(gpu_id, cache_dir=cache_dir)
            for gpu_id in gpu_ids
        )
    except BaseException:
        for earlier in opened:
            earlier.close()
        raise
    return opened


def _gpu_id(name: Any) -> int | None:
    """The GPU's number in a device's name; None for the CPU."""
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name) if isinstance(name, str) else None
    if match is None:
        raise ParameterError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got {shown(name)}")
    return None if name == "cpu" else int(match[1] or 0)


def _open_best(num_threads: int, cache_dir: str | os.PathLike[str] | None) -> Device:
    """The first GPU where CUDA can be used, else the CPU."""
    device: Device = CpuDevice(num_threads)
    if count_cuda_devices():
        try:
            device = CudaDevice(cache_dir=cache_dir)
        except DeviceUnavailableError as error:
            logger.warning("device='auto' takes the CPU, though there is a GPU: %s", error)
    logger.info("device='auto' took %s", device.name)
    return device
