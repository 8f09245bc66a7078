"""Many prompts in one call, as of a batch job: tokens a second of the whole, and what memory grows by."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.workloads import offline
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote, prepare


def run_offline(name: str, num_prompts: int, folder: Path, *, config: Any = None) -> dict[str, Any]:
    """Run a backend, in a process of its own, over the tweets workload as often as it takes.

    Args:
        name: of a backend that takes mixed lengths in one call.
        num_prompts: requests in all.
        folder: for the checkpoint of random weights and what the backend makes of it.
        config: transformers' configuration of the model; None is GPT-2 124M.

    Raises:
        ValueError: the backend is not installed, or takes static batches alone.
        WorkerError: it failed.
    """
    entry = BACKENDS.get(name)
    if entry is None or entry.is_static or not entry.is_installed:
        raise ValueError(f"{name} is not installed here, or takes no requests of mixed lengths")
    environment = capture_environment()
    checkpoint = write_model(folder, config)
    prepare(name, checkpoint, folder / name)
    with closing(Remote(name, checkpoint, folder / name)) as side:
        side.seconds(offline(min(num_prompts, 256)))
        before = side.memory_mb()
        workload = offline(num_prompts)
        seconds = side.seconds(workload)
        return {
            "environment": environment,
            "backend": name,
            "num_prompts": num_prompts,
            "num_tokens": workload.num_tokens,
            "seconds": seconds,
            "tokens_per_s": workload.num_tokens / seconds,
            "memory_mb": {"after 256 prompts": before, "after all": side.memory_mb()},
        }
