"""Whole runs: several people, sweeps, several processes, pictures and records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.paths import ROOT
from support.small_run import TINY, write_archive

from training.__main__ import main

pytestmark = pytest.mark.integration

SHORT = ["--block-size", "64", "--batch-size", "8", "--epochs", "1"]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def test_several_people_become_one_model(arguments: list[str], tmp_path: Path) -> None:
    gull = write_archive(tmp_path / "gull.js", num_tweets=400)
    more = ["--handle", "A_gull", "--tweets", str(gull), "--name", "Goose", "--name", "Gull"]
    assert main([*arguments, *more, *TINY, *SHORT, "--seed", "1"]) == 0
    record = read(tmp_path / "out" / "model", "dataset.json")
    assert record["handle"] == "A_gull-goose"
    assert [user["name"] for user in record["users"]] == ["Gull", "Goose"]
    assert [user["counts"]["downloaded"] for user in record["users"]] == [400, 150]
    assert record["users"][0]["repeats"] == 1.0
    assert record["users"][1]["repeats"] > 2
    assert r"| Data | \@A\_gull | \@goose |" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_a_sweep_keeps_the_best_checkpoint_and_tells_of_all_trials(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *TINY, *SHORT, "--seed", "1", "--sweep", "2"]) == 0
    model = tmp_path / "out" / "model"
    trials = read(model, "sweep.json")["trials"]
    best = min(trials, key=lambda trial: trial["loss"])
    assert len(trials) == 2
    training = read(model, "training.json")
    assert training["evaluation"]["loss_after"] == best["loss"]
    for name in ("epochs", "learning_rate", "schedule", "gradient_accumulation"):
        assert training["hyper_parameters"][name] == best["hyper_parameters"][name]
    assert read(model, "dataset.json")["epochs"] == best["hyper_parameters"]["epochs"]
    assert "trial     loss" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert not [path for path in model.iterdir() if path.is_dir()]


def test_a_sweep_whose_trial_dies_goes_on_with_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import job as job_module

    train, calls = job_module.train, []

    def interrupted(*given: Any) -> None:
        calls.append(given)
        train(*given)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "train", interrupted)
    options = [*arguments, *TINY, *SHORT, "--seed", "1", "--sweep", "3"]
    assert main(options) == 130
    assert main([*options, "--resume"]) == 0
    trials = read(tmp_path / "out" / "model", "sweep.json")["trials"]
    assert len(trials) == 3
    assert len(calls) == 4
    best = min(trial["loss"] for trial in trials)
    assert read(tmp_path / "out" / "model", "training.json")["evaluation"]["loss_after"] == best


def test_torchrun_trains_one_model_in_two_processes(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, "-m", "training", *arguments, *TINY, *SHORT, "--seed", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("tweets downloaded") == 1
    training = read(tmp_path / "out" / "model", "training.json")
    assert training["num_processes"] == 2
    assert training["evaluation"]["loss_after"] < training["evaluation"]["loss_before"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_a_whole_run_has_pictures_samples_and_records(arguments: list[str], tmp_path: Path) -> None:
    options = [option for option in TINY if option != "--no-preview"]
    options += [*SHORT, "--report-to", "wandb", "tensorboard", "mlflow", "--seed", "1"]
    assert main([*arguments, *options]) == 0
    model = tmp_path / "out" / "model"
    sizes = {"preview.png": (1200, 630), "bot.png": (400, 400), "pipeline.png": (1200, 300)}
    for name, size in sizes.items():
        with Image.open(model / name) as picture:
            assert picture.size == size
    assert len(read(model, "samples.json")["texts"]) == 5
    card = (model / "README.md").read_text("utf-8")
    for part in ("![Five tweets", "## Samples", "(loss.png)", "language: en"):
        assert part in card
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "eval_loss"} <= {name for line in lines for name in line}
    assert list((model / "wandb").glob("offline-run-*"))
    assert list((model / "tensorboard").glob("events*"))
    assert (model / "mlflow" / "mlflow.db").exists()
    assert str(tmp_path) not in "".join(path.read_text("utf-8") for path in model.glob("*.json"))
