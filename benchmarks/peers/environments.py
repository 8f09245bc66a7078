"""Where a peer's packages are: an environment of its own for each that does not fit into ours.

`make peers` makes them, from the locked lists in `benchmarks/peers/requirements`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure.paths import PEERS


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's environment; "" names the environment of this process."""
    return PEERS / environment / "bin" / "python" if environment else Path(sys.executable)


def is_installed(environment: str, packages: Sequence[str]) -> bool:
    """Whether an environment was made; in that of this process, whether it has the packages."""
    if environment:
        return (PEERS / environment / "installed").exists()
    return all(find_spec(package) for package in packages)
