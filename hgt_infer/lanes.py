"""A lane per device: the runner that suits its kind, and as many slots as are asked for or fit its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hgt_infer.artifact import Artifact
from hgt_infer.captured_runner import CapturedRunner
from hgt_infer.cuda import CudaDevice
from hgt_infer.device import Device
from hgt_infer.engine import Lane
from hgt_infer.kv_cache import KVCache
from hgt_infer.runner import ModelRunner
from hgt_infer.scheduler import Line, Scheduler
from hgt_infer.slot_record import MAX_FED_TOKENS

logger = logging.getLogger(__name__)

DEFAULT_CPU_SLOTS = 16
DEFAULT_STEPS_PER_SYNC = 4
"""Two blocks of two steps. By arithmetic, not yet by measurement: the host has the time of two steps to
examine one block, and a sequence that ends wastes three rows at most."""


def open_lanes(
    artifact: Artifact,
    devices: Sequence[Device],
    *,
    num_slots: int | None,
    max_length: int,
    batch_invariant: bool,
    steps_per_sync: int | None,
) -> list[Lane]:
    """Open the model on every device; the lanes share one line.

    Args:
        artifact: the exported model, in the precision of the devices.
        devices: of one kind.
        num_slots: of each device; None is 16 on a CPU, and as many as fit the memory, up to 256, on CUDA.
        max_length: cache positions of a slot.
        batch_invariant, steps_per_sync: see Generator; without effect on a CPU.

    Raises:
        DeviceMemoryError: the slots do not fit a device's memory.
        DeviceUnavailableError, ModelFormatError: ONNX Runtime cannot run the model there.
    """
    line = Line()
    lanes = []
    for device in devices:
        if isinstance(device, CudaDevice):
            captured = CapturedRunner(
                artifact,
                device,
                num_slots=num_slots,
                max_length=max_length,
                steps_per_sync=steps_per_sync or DEFAULT_STEPS_PER_SYNC,
                batch_invariant=batch_invariant,
            )
            # A prefill's shape is the prompt's own where tokens must not depend on company.
            scheduler = Scheduler(
                captured.num_slots,
                line,
                max_fed_tokens=MAX_FED_TOKENS,
                closes_gaps=False,
                shares_prefills=not batch_invariant,
            )
            lanes.append(Lane(captured, scheduler))
        else:
            eager = ModelRunner(
                artifact, device, num_slots=num_slots or DEFAULT_CPU_SLOTS, max_length=max_length
            )
            scheduler = Scheduler(num_slots or DEFAULT_CPU_SLOTS, line)
            lanes.append(Lane(eager, scheduler))
        logger.info(
            "%s on %s in %s: %d slots of %d positions, %.0f MB of cache",
            artifact.path,
            device.name,
            artifact.precision,
            scheduler.num_slots,
            max_length,
            scheduler.num_slots
            * KVCache.bytes_per_slot(artifact.config, max_length, artifact.float_type)
            / 1e6,
        )
    return lanes
