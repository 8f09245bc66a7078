"""Where things lie: the repository, and what is made and kept by a run. Imports nothing else."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "build" / "bench"
PEERS = REPOSITORY / "build" / "peers"
"""An environment in each folder, which `make peers` makes."""
