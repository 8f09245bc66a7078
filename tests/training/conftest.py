"""Fixtures of the tests of training."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.small_run import TINY, write_archive
from support.wandb_stand_in import Uploads, wandb_stand_in

from training.__main__ import main


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder without keys and settings."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@dataclass(frozen=True)
class TrainedRun:
    """What a run of the command left: archive and checkpoint, what it printed, what W&B was sent."""

    archive: Path
    checkpoint: Path
    out: str
    err: str
    uploads: Uploads


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run with default trackers, on a machine where Weights & Biases has a key."""
    folder = tmp_path_factory.mktemp("trained")
    archive = write_archive(folder / "tweets.js")
    (folder / "goose").mkdir()  # an empty folder is no obstacle
    options = ["--tweets", str(archive), "--handle", "goose", "--output", str(folder / "goose")]
    options += [*TINY, "--tweets-apart", "--block-size", "128", "--seed", "3"]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, wandb_stand_in() as uploads:
        patch.setenv("WANDB_API_KEY", "a" * 40)
        patch.setenv("WANDB_BASE_URL", uploads.url)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main(options) == 0
    return TrainedRun(archive, folder / "goose", out.getvalue(), err.getvalue(), uploads)


@pytest.fixture(scope="session")
def trained(trained_run: TrainedRun) -> Path:
    """The checkpoint of `trained_run`, not to be changed."""
    return trained_run.checkpoint


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Options of a run into an empty folder `out`."""
    (tmp_path / "in").mkdir()
    write_archive(tmp_path / "in" / "tweets.js", num_tweets=150)
    (tmp_path / "out").mkdir()
    options = {
        "tweets": tmp_path / "in" / "tweets.js",
        "handle": "goose",
        "output": tmp_path / "out" / "model",
    }
    return [part for option, value in options.items() for part in (f"--{option}", str(value))]
