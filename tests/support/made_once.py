"""Files that one of pytest's workers makes and all of them read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path `name` of the whole test run, after one worker has called `make` with it.

    A `make` that fails is called again by the next worker: it must bear what it left.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    is_made = path.with_name(f"{name}.made")
    with FileLock(path.with_name(f"{name}.lock")):
        if not is_made.exists():
            make(path)
            is_made.touch()
    return path
