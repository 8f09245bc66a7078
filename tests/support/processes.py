"""Processes of their own that need not load PyTorch: they are forked from a server that has loaded it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training.job", "training.learning.finetune"])


def start(target: Callable[..., Any], *args: object) -> BaseProcess:
    """Start a process that calls a function of a module of `support`."""
    process = _context.Process(target=target, args=args)
    process.start()
    return process


def train_by_command(
    arguments: list[str],
    output: Path,
    max_file_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `python -m training`, with its output in a file, and end with its status."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment or {}
    if max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    from training.__main__ import main

    sys.exit(main(arguments))
