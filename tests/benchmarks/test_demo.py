"""The demo: its lines, its table, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_backend import TINY
from support.paths import ROOT

from benchmarks.cases import demo
from benchmarks.measure.comparison import Comparison


def test_tweets_are_cut_at_the_first_line_break_and_wrapped() -> None:
    texts = [" My dream is soup.\nThe goose: honk.", "My dream is to " + "sail " * 20]
    lines = demo.format_tweets(texts, 60).splitlines()
    assert lines[0] == "  1  My dream is soup."
    assert lines[1].startswith("  2  My dream is to sail")
    assert lines[2].startswith("     sail")
    assert max(map(len, lines)) <= 60


def test_demo_table_fits_a_terminal() -> None:
    comparison = Comparison(TINY, {"hgt_infer": [1e-3] * 3, "transformers": [9e-3, 8e-3, 7e-3]})
    lines = demo.format_comparison(comparison, num_threads=16).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[2:]] == [
        ["hgt_infer", "20,000"],
        ["transformers", "2,500"],
        ["ratio", "8.0"],
    ]
    assert lines[-1].endswith("(7.0 to 9.0 in 3 rounds)")


@pytest.mark.integration
def test_demo_exports_samples_and_compares_without_noise(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.symlink_to(checkpoint)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.cases.demo", str(folder), "--rounds", "2", "--tokens", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert "of transformers'" in process.stdout
    assert [line.split()[0] for line in lines if line.lstrip()[:1].isdigit()][:5] == list("12345")
    assert lines[-1].lstrip().startswith("ratio")
    assert (tmp_path / "checkpoint-artifact" / "model.onnx").is_file()


def test_demo_of_no_checkpoint_is_one_line_of_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "be_quiet", lambda: None)  # it is for the whole process
        assert demo.main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
