"""What Weights & Biases is told, read back from what its real client wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT
from support.tracked_run import CONFIG, DATASET, ENTRIES, TRAINING, a_run, record
from support.wandb_log import LoggedRun, read_runs
from support.wandb_stand_in import wandb_stand_in

from training.tracking import wandb_runs
from training.tracking.trackers import tracked

pytestmark = pytest.mark.usefixtures("no_account")


def the_runs(folder: Path) -> tuple[LoggedRun, LoggedRun]:
    runs = read_runs(folder / "wandb")
    assert {name: len(logged) for name, logged in runs.items()} == {"preprocess": 1, "train": 1}
    return runs["preprocess"][0], runs["train"][0]


@pytest.mark.integration
def test_wandb_has_two_runs_that_four_artifacts_link(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record(run, "wandb")
    preprocess, train = the_runs(run.folder)

    def linked(logged: LoggedRun) -> list[tuple[str, str, bool]]:
        return [(a.type, a.name, a.use_after_commit) for a in logged.artifacts]

    assert linked(preprocess) == [
        ("raw-dataset", "goose-tweets", False),
        ("train-dataset", "goose-dataset", False),
    ]
    assert linked(train) == [
        ("train-dataset", "goose-dataset", True),
        ("pretrained-model", "scratch", True),
        ("finetuned-model", "goose-model", False),
    ]
    made, used = preprocess.artifacts[1], train.artifacts[0]
    assert made.digest == used.digest
    assert json.loads(made.metadata) == DATASET
    assert json.loads(train.artifacts[1].metadata)["model"] == CONFIG["scratch_model"]
    assert [entry.path for entry in train.artifacts[2].manifest.contents] == [
        "README.md",
        "model.safetensors",
    ]


def test_wandb_has_configuration_versions_curves_and_result(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record(run, "wandb")
    preprocess, train = the_runs(run.folder)
    assert train.config["hyper_parameters"] == CONFIG["hyper_parameters"]
    assert train.config["libraries"] == TRAINING["libraries"]
    assert preprocess.config["epochs"] == 4
    curves = [
        {name: row[name] for name in ("_step", "loss", "learning_rate", "eval_loss") if name in row}
        for row in train.history
    ]
    assert curves == [
        {"_step": 5, "loss": 4.0, "learning_rate": 4e-3},
        {"_step": 10, "loss": 3.0, "learning_rate": 2e-3, "eval_loss": 3.5},
    ]
    assert train.summary["loss_after"] == 2.5
    assert (preprocess.exit_code, train.exit_code) == (0, 0)


def test_wandb_records_nothing_of_the_machine(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record(run, "wandb")
    for logged in the_runs(run.folder):
        assert not logged.run.host
        assert not logged.run.git.remote_url
        assert str(tmp_path) not in json.dumps([logged.config, logged.summary, logged.history])
        assert all(str(tmp_path) not in artifact.metadata for artifact in logged.artifacts)
    assert not list((run.folder / "wandb").rglob("requirements.txt"))
    assert not list((run.folder / "wandb").rglob("wandb-metadata.json"))


@pytest.mark.integration
def test_trackers_leave_nothing_outside_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before, children = dict(os.environ), psutil.Process().children(recursive=True)
    record(a_run(tmp_path), "wandb", "tensorboard", "mlflow")
    assert dict(os.environ) == before
    assert psutil.Process().children(recursive=True) == children
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not list(elsewhere.iterdir())


@pytest.mark.integration
def test_offline_runs_are_uploaded_after_the_checkpoint_was_put_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    record(run, "wandb")
    run.folder.rename(run.output)
    *_, command = capsys.readouterr().out.splitlines()[-1].partition("wandb sync ")
    files = {path: path.read_bytes() for path in run.output.iterdir() if path.is_file()}
    with wandb_stand_in() as uploads:
        environment = os.environ | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": uploads.url}
        sync = [sys.executable, "-m", "wandb", "sync", "--yes", command]
        subprocess.run(sync, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert uploads.files == {
        "tweets.csv": run.tweet_files[0].read_bytes(),
        "dataset.txt": (run.output / "wandb" / "dataset.txt").read_bytes(),
        "base.json": (run.output / "wandb" / "base.json").read_bytes(),
        "model.safetensors": b"weights",
        "README.md": b"the card",
    }
    ids = json.loads((run.output / "wandb" / "runs.json").read_text(encoding="utf-8"))
    used = sorted((name, uploads.artifacts[artifact]) for name, artifact in uploads.used)
    assert used == [(ids["train"], "pretrained-model"), (ids["train"], "train-dataset")]
    assert [json.loads(line)["loss"] for line in uploads.history] == [4.0, 3.0]
    assert {path: path.read_bytes() for path in files} == files


def test_with_a_key_runs_are_recorded_online_and_have_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    with wandb_stand_in() as uploads:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", uploads.url)
        with tracked(["wandb"], run) as trackers:
            for entry in ENTRIES:
                trackers.log(entry)
            (run.folder / "model.safetensors").write_bytes(b"weights")
            trackers.log_model(TRAINING)
    ids = json.loads((run.folder / "wandb" / "runs.json").read_text(encoding="utf-8"))
    address = f"{uploads.url}/someone/hgt-infer/runs/"
    assert trackers.links == {name: address + ids[name] for name in ("preprocess", "train")}
    assert capsys.readouterr() == (f"Weights & Biases: {trackers.links['train']}\n", "")
    assert sorted(uploads.files) == ["base.json", "dataset.txt", "model.safetensors", "tweets.csv"]
    assert uploads.num_requests > 4
    used = sorted((name, uploads.artifacts[artifact]) for name, artifact in uploads.used)
    assert used == [(ids["train"], "pretrained-model"), (ids["train"], "train-dataset")]
    assert [json.loads(line)["loss"] for line in uploads.history] == [4.0, 3.0]


def test_resumed_run_keeps_its_ids_and_has_each_step_once(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), tracked(["wandb"], run) as trackers:
        trackers.log(ENTRIES[0])
        trackers.log({"step": 7, "epoch": 0.7, "loss": 3.5, "learning_rate": 3e-3})
        raise KeyboardInterrupt
    first = the_runs(run.folder)
    assert first[1].exit_code == 1
    record(run, "wandb")
    second = the_runs(run.folder)
    assert [logged.run.run_id for logged in first] == [logged.run.run_id for logged in second]
    assert [row["_step"] for row in second[1].history] == [5, 10]
    assert second[1].exit_code == 0


def test_of_an_archive_only_the_tweets_are_recorded(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    tweets = [{"tweet": {"id_str": "1", "full_text": "the heron is back", "retweeted": False}}]
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/tweets.js", "window.YTD.tweets.part0 = " + json.dumps(tweets))
        file.writestr("data/direct-messages.js", "window.YTD.direct_messages.part0 = []")
    run = a_run(tmp_path, tweet_files=(archive,))
    record(run, "wandb")
    raw = the_runs(run.folder)[0].artifacts[0]
    assert [entry.path for entry in raw.manifest.contents] == ["archive.jsonl"]
    written = (run.folder / "wandb" / "tweets-0.jsonl").read_text(encoding="utf-8")
    assert json.loads(written) == {"id": "1", "text": "the heron is back", "is_retweet": False}


def test_base_folder_is_recorded_by_hashes_and_a_hub_id_by_its_address(tmp_path: Path) -> None:
    base = tmp_path / "my gpt2"
    base.mkdir()
    (base / "config.json").write_text("{}", encoding="utf-8")
    run = a_run(tmp_path, base=str(base))
    record(run, "wandb")
    artifact = the_runs(run.folder)[1].artifacts[1]
    assert artifact.name == "my-gpt2"
    empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert json.loads(artifact.metadata) == {"base": "my gpt2", "sha256": {"config.json": empty_object}}
    run = a_run(tmp_path, base="someone/gpt2-small")
    record(run, "wandb")
    artifact = the_runs(run.folder)[1].artifacts[1]
    assert artifact.name == "someone-gpt2-small"
    assert json.loads(artifact.metadata)["address"] == "https://huggingface.co/someone/gpt2-small"


@pytest.mark.integration
def test_server_that_cannot_be_reached_turns_the_record_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_runs, "INIT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    run = a_run(tmp_path)
    record(run, "wandb")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: Weights & Biases records offline: ")
    assert warning.count("\n") == 1
    assert [row["loss"] for row in the_runs(run.folder)[1].history] == [4.0, 3.0]


def test_key_that_cannot_be_one_turns_the_record_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    run = a_run(tmp_path)
    record(run, "wandb")
    assert "records offline: WANDB_API_KEY invalid" in capsys.readouterr().err
    the_runs(run.folder)


def test_wandb_mode_of_the_user_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    record(run, "wandb")
    assert "WANDB_MODE is disabled" in capsys.readouterr().out
    assert not (run.folder / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    record(run, "wandb")
    the_runs(run.folder)


@pytest.mark.integration
def test_service_that_dies_is_warned_of_once_and_training_goes_on(tmp_path: Path) -> None:
    """In a process of its own: W&B never lets go of a service that it cannot reach."""
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = ['tests', '.']\n"
        "from support.tracked_run import record_with_a_service_that_dies as record; record(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: wandb stops recording, training goes on: ") == 1
    assert done.stderr.count("\n") == 1
    assert done.stdout == "7 entries, 1 model\n"
