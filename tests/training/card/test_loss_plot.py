"""loss.png: size, repeatability, and what can be seen on it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.paths import ROOT

from training.card.loss_plot import EVALUATION, PAPER, TRAINING, draw_loss

Entry = dict[str, float]


def curve(num_steps: int = 50) -> list[Entry]:
    return [
        {"step": step, "loss": 1 + 5 * math.exp(-step / 10), "learning_rate": 4e-3 * (1 - step / num_steps)}
        for step in range(1, num_steps + 1)
    ]


def evaluations(*losses: float) -> list[Entry]:
    return [{"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses, start=1)]


def pixels(folder: Path, entries: list[Entry]) -> NDArray[np.uint8]:
    """Draw and return [height, width, red green blue]."""
    draw_loss(folder / "loss.png", entries)
    with Image.open(folder / "loss.png") as image:
        return np.asarray(image.convert("RGB"))


def where(picture: NDArray[np.uint8], color: str) -> NDArray[np.bool_]:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    near: NDArray[np.bool_] = np.abs(picture.astype(int) - wanted).max(axis=2) < 12
    return near


@pytest.mark.parametrize("entries", [[], curve(1), curve(2000), curve() + evaluations(3.0, 2.5)])
def test_picture_has_its_size_whatever_was_logged(tmp_path: Path, entries: list[Entry]) -> None:
    assert pixels(tmp_path, entries).shape == (675, 1200, 3)


def test_same_entries_give_the_same_bytes_whatever_the_user_configured(tmp_path: Path) -> None:
    entries = curve() + evaluations(3.0, 2.5, 2.75)
    draw_loss(tmp_path / "a.png", entries)
    with matplotlib.rc_context({"figure.dpi": 50, "font.size": 30, "axes.facecolor": "black"}):
        draw_loss(tmp_path / "b.png", entries)
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert set(image.info) <= {"dpi"}


def test_each_curve_is_there_if_it_was_logged(tmp_path: Path) -> None:
    training = pixels(tmp_path, curve())
    assert where(training, TRAINING).any()
    assert not where(training, EVALUATION).any()
    evaluation = pixels(tmp_path, evaluations(3.0, 2.5))
    assert not where(evaluation, TRAINING).any()
    assert where(evaluation, EVALUATION).any()


@pytest.mark.parametrize("best", range(5))
def test_lowest_evaluation_is_marked_with_a_ring(tmp_path: Path, best: int) -> None:
    losses = [3.0] * 5
    losses[best] = 2.0
    picture = pixels(tmp_path, curve() + evaluations(*losses))
    red = where(picture, EVALUATION)
    rings = []
    for number in range(5):
        column = round(90 + (1158 - 90) * 10 * (number + 1) / (1.03 * 50))  # of the axes, 0.075 to 0.965 wide
        rows = np.flatnonzero(red[:, column])
        hollow = (
            where(picture, PAPER)[rows.min() : rows.max(), column] if rows.size else np.zeros(1, np.bool_)
        )
        # The ring's inside is paper; a point is filled, and what is over it has no red.
        rings.append(5 <= hollow.sum() <= 15)
    assert rings == [number == best for number in range(5)]


def test_label_of_the_lowest_evaluation_stays_inside(tmp_path: Path) -> None:
    for entries in (evaluations(2.0), evaluations(3.0, 2.0), evaluations(2.0, 3.0)):
        red = where(pixels(tmp_path, entries), EVALUATION)
        assert not red[:, 1195:].any()
        assert not red[:, :5].any()


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from training.card.loss_plot import draw_loss\n"
        "assert 'matplotlib' not in sys.modules\n"
        "draw_loss(Path(sys.argv[1]), [{'step': 1, 'loss': 2.0}])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "loss.png"], check=True, cwd=ROOT)
