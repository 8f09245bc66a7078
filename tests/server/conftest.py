"""A service over the tiny checkpoint that several modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.local_service import served

from hgt_infer import Generator


@pytest.fixture(scope="session")
def two_slots(artifact: Path) -> Iterator[Generator]:
    """A generator whose sequences soon wait for each other."""
    with Generator(artifact, device="cpu", num_slots=2) as generator:
        yield generator


@pytest.fixture(scope="session")
def address(generator: Generator) -> Iterator[str]:
    """Of a service with one model, goose, and the limits that it has by itself."""
    with served({"goose": generator}) as url:
        yield url


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client
