"""Fixtures that several test modules share.

The process that starts the workers reads this file too: what takes long to import is imported by fixtures.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import stub_cuda
from support.made_once import made_once
from support.paths import ROOT

from hgt_infer import Generator
from hgt_infer.runtime.device import CpuDevice

REFERENCE_DATA = Path(os.environ.get("HGT_REFERENCE_DATA", ROOT.parent / "shared" / "data"))

# No test depends on speed: property tests have no deadline either.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """Let no collection of garbage look through all that is loaded by now: that takes a third of a second.

    Training asks for collections, and so do tests of what is freed.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Give torch, and a session on the CPU, one thread unless a test asks for more.

    Threads that wait for each other spin against what else runs, another worker say.
    """
    import torch

    torch.set_num_threads(1)
    init = CpuDevice.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CpuDevice,
            "__init__",
            lambda device, num_threads=0, **others: init(device, num_threads or 1, **others),
        )
        yield


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference data that is not part of the project (HGT_REFERENCE_DATA)."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(f"no reference data at {REFERENCE_DATA}; set HGT_REFERENCE_DATA")
    return REFERENCE_DATA


@pytest.fixture(scope="module")
def model() -> Any:
    """transformers' model of the smallest checkpoint."""
    from support.small_checkpoint import small_model

    return small_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest checkpoint, anew for each test, to be changed by it."""
    from support.small_checkpoint import write_small_checkpoint

    return write_small_checkpoint(tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint laid out and configured like huggingtweets' models of 2021."""
    from support.checkpoints import write_checkpoint

    return made_once(tmp_path_factory, "checkpoint", write_checkpoint)


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported."""
    from hgt_infer.export import export_checkpoint

    return made_once(tmp_path_factory, "fp32", partial(export_checkpoint, checkpoint))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries that stand in for CUDA's."""
    reason = stub_cuda.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("libraries")
    stub_cuda.build(folder)
    return folder


@pytest.fixture(scope="session")
def generator(artifact: Path) -> Generator:
    """A generator of the tiny checkpoint with 16 slots."""
    return Generator(artifact, device="cpu")


@pytest.fixture(scope="session")
def reference_model(checkpoint: Path) -> Any:
    """transformers' model of the tiny checkpoint."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(checkpoint).eval()
