"""Fixtures of the tests of CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgt_infer.artifact.folder import Artifact, read_artifact


@pytest.fixture(scope="session")
def opened(artifact: Path) -> Artifact:
    """The exported checkpoint, read."""
    return read_artifact(artifact)
