"""A run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_run import FOUR_EVALUATIONS, train

from training.learning.metrics_log import MetricsLog


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, with its metrics.jsonl."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, options=FOUR_EVALUATIONS, callbacks=[MetricsLog(folder / "metrics.jsonl")])
    return folder
