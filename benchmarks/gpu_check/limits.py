"""Checks of what cannot work: it says so by name, and what comes after it works."""

from __future__ import annotations

from benchmarks.gpu_check.report import Result, Skipped, first_line, judged
from benchmarks.gpu_check.subject import Subject, fixed_length
from hgt_infer import DeviceUnavailableError, Generator
from hgt_infer.errors import DeviceMemoryError

NUM_SLOTS = 256
MISSING = "cuda:99"
SPARE_BYTES = 512 << 20  # for the libraries' own


def check_missing_gpu(subject: Subject) -> Result:
    """A number that no GPU has."""
    try:
        Generator(subject.artifact.path, device=MISSING).close()
    except DeviceUnavailableError as error:
        return judged("missing GPU", True, type(error).__name__, f"{MISSING}: {first_line(error)}")
    return judged("missing GPU", False, "no error", f"a generator was made on {MISSING}")


def check_out_of_memory(subject: Subject) -> Result:
    """More slots than fit beside a ballast that takes nearly all memory; once it is gone, they fit."""
    if not subject.is_cuda:
        raise Skipped("only a GPU's memory is asked for at once")
    slot_bytes = subject.bytes_per_token * subject.artifact.config.n_positions
    spare = 2 * subject.weights_bytes + SPARE_BYTES
    left = max(spare, NUM_SLOTS * slot_bytes // 2)
    if left >= NUM_SLOTS * slot_bytes:
        raise Skipped(f"the cache of {NUM_SLOTS} slots is smaller than what the libraries need")
    name, says = "no error", "the generator was made"
    with subject.open_device() as device:
        free, _ = device.memory()
        if free < NUM_SLOTS * slot_bytes:
            raise Skipped(f"{free / 1e9:.1f} GB are free, too few for {NUM_SLOTS} slots anyway")
        device.allocate(free - left)
        try:
            Generator(subject.artifact.path, device=subject.device, num_slots=NUM_SLOTS).close()
        except Exception as error:
            name, says = type(error).__name__, first_line(error)
    is_good = name == DeviceMemoryError.__name__
    with subject.generator(num_slots=4) as generator:
        generator.generate("a", fixed_length(4))
    return judged("out of memory", is_good, name, f"{NUM_SLOTS} slots beside a ballast: {says}")
