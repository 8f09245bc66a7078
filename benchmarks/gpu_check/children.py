"""Processes of their own for what may crash or hang, or what is read once in a process.

A child prints its values as lines of JSON; what it printed before it ended counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_check.report import shortened
from benchmarks.measure.paths import REPOSITORY

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Child:
    """What a process printed. error: why it ended early; "" where it did not."""

    lines: list[dict[str, Any]]
    error: str = ""


def end_with_parent() -> None:
    """Let the system end this process when the one that started it ends: it would go on using the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Run `python -m MODULE ARGUMENT…` with more environment variables; it is ended after timeout_s."""
    error = ""
    try:
        process = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        output = process.stdout
        if process.returncode:
            error = f"exit {process.returncode}: {_last_line(process.stderr)}"
    except subprocess.TimeoutExpired as expired:
        output, error = expired.stdout or b"", f"it took over {timeout_s:.0f} s"
    return Child(_parse(output), error)


def _parse(output: bytes) -> list[dict[str, Any]]:
    """The lines that are JSON objects: libraries may print others, and the last one may be cut off."""
    found = []
    for line in output.decode(errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return shortened(lines[-1] if lines else "it said nothing", 160)
