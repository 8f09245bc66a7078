"""A server in a process of its own, which prints its address when it takes requests."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.memory import memory_bytes
from benchmarks.measure.paths import REPOSITORY

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_ADDRESS = re.compile(r"http://([\d.]+):(\d+)")


class ServerProcess:
    """See `benchmarks.measure.http_client.Server`.

    Args:
        command: prints `http://HOST:PORT` to standard output or error.

    Raises:
        RuntimeError: it ends or says nothing in START_TIMEOUT_S; the message has the end of what it printed.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        # A file, because a full pipe would stop the server. Both share its offset, which pread leaves alone.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=self._log, stderr=self._log, preexec_fn=_end_with_parent
        )
        try:
            self.host, self.port = self._address()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def memory_mb(self) -> float:
        """Resident."""
        return memory_bytes(self.pid)["resident"] / 1e6

    def num_files(self) -> int:
        """Descriptors that are open."""
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def close(self) -> None:
        """End it as an operator does; kill it where it does not end in END_TIMEOUT_S."""
        self._process.terminate()
        end(self._process)
        self._log.close()

    def _address(self) -> tuple[str, int]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (found := _ADDRESS.search(self._printed())) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                printed = " | ".join(self._printed().splitlines()[-3:])
                raise RuntimeError(f"{self.name} did not start: {printed}")
            time.sleep(0.05)
        return found[1], int(found[2])

    def _printed(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")


def end(process: subprocess.Popen[Any]) -> None:
    """Wait for the end of a process, END_TIMEOUT_S at most; then kill it."""
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """Let Linux end this process when the one that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
