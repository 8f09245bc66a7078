"""Processes of their own that need not load PyTorch, as they are forked from one that has loaded it; and what
tests do in them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.small_run import FOUR_EVALUATIONS, TINY_MODEL, train

from training.learning.presets import FINE_TUNING, HyperParameters

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training.job", "training.learning.finetune"])


def start(target: Callable[..., Any], *args: object) -> BaseProcess:
    """Start a process that calls a function of a module of `support`."""
    process = _context.Process(target=target, args=args)
    process.start()
    return process


def fork(target: Callable[..., Any], *args: object) -> BaseProcess:
    """Start a process that calls a function which takes no lock that another thread of this one may hold.

    PyTorch and ONNX Runtime have such threads and locks: what uses them is started by `start`.
    """
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def train_by_command(arguments: list[str], output: Path, max_file_bytes: int | None = None) -> None:
    """Run `python -m training`, with its output in a file, and end with its status."""
    print_to(output)
    if max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    from training.__main__ import main

    sys.exit(main(arguments))


def print_to(output: Path) -> None:
    """Have all that this process and its children print from now on in a file."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def train_and_die(folder: Path, place: str) -> None:
    """Train, in a process of its own, and kill it at the place that is named."""
    import torch

    from training.learning import finetune, trainer

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "while it saves the optimizer":
        saved = torch.save

        def save(value: object, path: Any, *args: Any, **options: Any) -> None:
            if "optimizer" in str(path) and "checkpoint-24" in str(path):
                Path(path).write_bytes(b"half")
                kill()
            saved(value, path, *args, **options)

        torch.save = save
    elif place == "after training":
        finetune.save = kill  # type: ignore[assignment]
    else:
        step = {"before anything is saved": 5, "in the middle": 30}[place]
        begin = trainer.Milestones.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == step:
                kill()
            begin(self, args, state, control, **rest)

        trainer.Milestones.on_step_end = on_step_end  # type: ignore[method-assign]
    train(folder, options=FOUR_EVALUATIONS)


def train_as_one_of_two(folder: Path, rank: int, port: int) -> None:
    """Train as torchrun has a process do it, and leave its report beside the folder."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    report = train(folder, base=dataclasses.replace(TINY_MODEL, dropout=0.0))
    folder.with_name(f"report-{rank}.json").write_text(json.dumps(dataclasses.asdict(report)))


def sweep_and_die(storage: Path, at: int) -> None:
    """Search with the seed 5, in a process of its own, and kill it in the trial of a number."""
    from training.learning.sweep import sweep

    def objective(tried: HyperParameters, number: int) -> float:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return valley(tried)

    sweep(objective, base=FINE_TUNING, num_trials=at + 1, seed=5, storage=storage)


def valley(tried: HyperParameters, number: int = 0) -> float:
    """Lowest at a rate of e^-9, 6 epochs and a linear schedule."""
    return (
        (math.log(tried.learning_rate) + 9) ** 2
        + 0.1 * abs(tried.epochs - 6)
        + (tried.schedule != "linear")
        + tried.warmup_ratio
    )
