"""The command line: what it refuses, says and leaves behind."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support.paths import ROOT
from support.processes import start, train_by_command
from support.small_run import TINY, write_archive

from training.__main__ import main
from training.arguments import Job, parse_job
from training.corpus.cleaning import CleaningRules
from training.errors import HyperParameterError
from training.learning.presets import (
    FINE_TUNING,
    SCRATCH,
    SCRATCH_MODEL,
    HyperParameters,
    Lora,
    RunOptions,
    ScratchModel,
)
from training.options import invoke


def job(*options: str) -> Job:
    parsed = invoke(parse_job, options, prog="training")
    assert isinstance(parsed, Job)
    return parsed


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit status 2 and one line on standard error, and return it."""
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    lines = [line for line in lines if line.startswith("error: ") or ("it/s" not in line and line.strip())]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "scratch", "--dropout", "1"], "dropout is 1.0"),
        (["--eval-fraction", "0.9"], "eval_fraction is 0.9, expected 0 to 0.5"),
        (["--epochs", "0"], "epochs is 0, expected 1 or more"),
        (["--batch-size", "-1"], "batch_size is -1"),
        (["--block-size", "1"], "block_size is 1, expected 2 or more"),
        (["--learning-rate", "0"], "learning_rate is 0.0, expected a number over 0"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--warmup-ratio", "1"], "warmup_ratio is 1.0, expected 0 up to 1"),
        (["--gradient-accumulation", "0"], "gradient_accumulation is 0, expected 1 or more"),
        (["--weight-decay", "-1"], "weight_decay is -1.0, expected 0 or more"),
        (["--evaluations", "0"], "num_evaluations is 0, expected 1 or more"),
        (["--early-stopping", "0"], "early_stopping is 0, expected 1 or more"),
        (["--keep-best", "--eval-fraction", "0"], "eval_fraction is 0, expected more"),
        (["--sweep", "3", "--eval-fraction", "0"], "eval_fraction is 0, expected more"),
        (["--lora-rank", "0"], "lora_rank is 0, expected 1 or more"),
        (["--lora-alpha", "4"], "--lora-alpha needs --lora-rank"),
        (["--lora-rank", "4", "--base", "scratch"], "--lora-rank needs a base to adapt"),
        (["--min-words", "101"], "min_words is 101, expected 0 to 100"),
        (["--handle", "second"], "1 --tweets, 2 --handle and 0 --name are given"),
        (["--name", "a", "--name", "b"], "1 --tweets, 1 --handle and 2 --name are given"),
        (["--accounts", "/nowhere"], "--accounts goes without"),
        (["--report-to", "none", "wandb"], "--report-to none goes without wandb"),
        (["--threads", "0"], "num_threads is 0, expected 1 or more"),
        (["--seed", "-1"], "seed is -1, expected 0 to 4294967295"),
        (["--base", "scratch", "--hidden-size", "100"], "hidden_size is 100, expected a multiple of 64"),
        (["--base", "scratch", "--vocab-size", "256"], "vocab_size is 256, expected 257 or more"),
        (["--base", "scratch", "--num-layers", "0"], "num_layers is 0"),
        (["--hidden-size", "64"], "--hidden-size is only for --base scratch"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in failure([*arguments, *options], capsys)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--handle", "no handle", "--tweets", "a.js"], "handle 'no handle' is not"),
        (["--handle", "a", "--tweets", "/nowhere/tweets.js"], "/nowhere/tweets.js: cannot be read"),
        (["--handle", "a", "--tweets", "a.js", "--handle", "A", "--tweets", "b.js"], "'a' is given twice"),
        ([], "no tweets are given: --tweets FILE, or --accounts DIR"),
        (["--accounts", "/nowhere"], "accounts /nowhere is not a folder"),
    ],
)
def test_tweets_that_cannot_be_are_refused_in_one_line(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in failure([*given, "--output", str(tmp_path / "out")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_tell_whose_it_is_needs_a_handle(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for part in arguments if part not in ("--handle", "goose")]
    assert "does not say whose tweets they are: give --handle NAME" in failure(given, capsys)


def test_an_archive_tells_whose_it_is(tmp_path: Path) -> None:
    write_archive(tmp_path / "tweets.js")
    account = [{"account": {"username": "goose_lantern", "accountDisplayName": "Goose & Lantern"}}]
    (tmp_path / "account.js").write_text(f"window.YTD.account.part0 = {json.dumps(account)}")
    [user] = job("--tweets", str(tmp_path), "--output", "x").users
    assert (user.handle, user.name, user.paths) == ("goose_lantern", "Goose & Lantern", (tmp_path,))


def test_a_folder_of_accounts_has_a_person_for_each_entry(tmp_path: Path) -> None:
    for name in ("gull.csv", "Goose.js", ".hidden"):
        (tmp_path / name).touch()
    users = job("--accounts", str(tmp_path), "--output", "x").users
    assert [(user.handle, user.paths) for user in users] == [
        ("Goose", (tmp_path / "Goose.js",)),
        ("gull", (tmp_path / "gull.csv",)),
    ]


def test_a_small_archive_is_refused_with_its_counts(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = tmp_path / "small.csv"
    small.write_text("text\nthe goose left again\nHonk.\n")
    arguments[1] = str(small)
    message = failure(arguments, capsys)
    assert "at least 6,000 are needed: 2 downloaded, 0 retweets, 1 short, 1 kept" in message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shuffle", "no"], "No such option: --shuffle"),
        (["--epochs", "two"], "Invalid value for '--epochs'"),
        (["--schedule", "steep"], "Invalid value for '--schedule'"),
        (["--seed"], "Option '--seed' requires an argument"),
        (["--seed", "--force"], "--seed needs a value, found --force"),
        (["--handle", "--tweets-apart"], "--handle needs a value, found --tweets-apart"),
        (["--report-to", "comet"], "tracker 'comet' is not known"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_a_wrong_use_is_one_line(
    arguments: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure([*arguments, *options], capsys)


def test_an_output_has_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Missing option '--output'" in failure(["--tweets", "a", "--handle", "a"], capsys)


def test_an_option_of_several_takes_all_that_follows(tmp_path: Path) -> None:
    given = ["--tweets", "a b.zip", "c=d.js", "--handle", "x", "--tweets", "e", "--handle", "w"]
    parsed = job(*given, "--output", "o", "--report-to", "mlflow", "tensorboard")
    paths = {user.handle: user.paths for user in parsed.users}
    assert paths == {"x": (Path("a b.zip"), Path("c=d.js")), "w": (Path("e"),)}
    assert parsed.report_to == ("mlflow", "tensorboard")


def test_a_base_that_is_not_there_leaves_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    message = failure([*arguments, "--base", str(tmp_path / "empty")], capsys)
    assert "cannot be loaded: the folder has no config.json" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_before_anything_is_saved_leaves_nothing(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.learning.finetune.finetune", interrupt)
    assert main([*arguments, *TINY]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.integration
def test_a_run_that_fails_at_its_end_is_gone_on_with(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*arguments, *TINY]
    for error, status in ((OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)):
        with monkeypatch.context() as patch:
            patch.setattr("training.job.write_card", Mock(side_effect=error))
            assert main(given) == status
        assert "what was trained is kept, --resume goes on with it" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".model.training"]
        given = [*arguments, *TINY, "--resume"]

    assert "--resume goes on with it, --force begins anew" in failure([*arguments, *TINY], capsys)
    other = failure([*given, "--learning-rate", "0.001"], capsys)
    assert "had another hyper_parameters" in other
    assert main(given) == 0  # the seed that was drawn is taken up
    assert "going on with scratch" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.integration
def test_a_full_disk_is_one_line_and_what_was_trained_before_is_gone_on_with(
    arguments: list[str], tmp_path: Path
) -> None:
    """No file may grow over 300 KB: weights and optimizer states cannot be written."""
    given = [*arguments, *TINY, "--seed", "1"]
    run = start(train_by_command, given, tmp_path / "printed", 300_000)
    run.join(120)
    printed = (tmp_path / "printed").read_text()
    assert run.exitcode == 2, printed
    errors = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large" in errors[0] or "cannot be saved" in errors[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "model").exists()
    assert main([*given, "--resume"]) == 0


@pytest.mark.integration
def test_a_killed_run_is_gone_on_with_and_two_runs_keep_apart(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*TINY, "--epochs", "400", "--evaluations", "200", "--seed", "1"]
    work = tmp_path / "out" / ".model.training"
    run = start(train_by_command, [*arguments, *long], tmp_path / "printed")
    while not list(work.glob("steps/*/trainer_state.json")):
        assert run.is_alive()
        time.sleep(0.05)
    assert "is being written by another run" in failure([*arguments, *long, "--resume"], capsys)
    assert run.is_alive()
    run.kill()
    run.join(60)
    assert not (tmp_path / "out" / "model").exists()
    assert main([*arguments, *TINY, "--seed", "1", "--force"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_force_replaces_a_checkpoint_and_only_that(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "out" / "model"
    output.mkdir()
    for name in ("config.json", "old"):
        (output / name).write_text("{}")
    assert "is not empty; choose another folder or give --force" in failure([*arguments, *TINY], capsys)
    assert (output / "old").exists()
    message = failure([*arguments, *TINY, "--force", "--learning-rate", "1e36"], capsys)
    assert "training diverged" in message
    assert (output / "old").exists()  # a failed run keeps what was there, and leaves nothing
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert main([*arguments, *TINY, "--force"]) == 0
    assert not (output / "old").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]

    (output / "config.json").unlink()
    assert "is not a checkpoint (no config.json)" in failure([*arguments, *TINY, "--force"], capsys)
    assert (output / "model.safetensors").exists()


def test_it_prints_counts_warning_seed_losses_and_folder(trained_run: Any) -> None:
    out, err = trained_run.out, trained_run.err
    assert "tweets downloaded      200\n" in out
    assert "seed 3" in out
    assert "evaluation loss before" in out
    assert "perplexity" in out
    assert f"checkpoint in {trained_run.checkpoint}" in out
    assert "warning: the tweets are only" in err
    assert "'loss'" not in out + err  # no log lines between


def test_a_key_of_weights_and_biases_sends_nothing_by_itself(trained_run: Any) -> None:
    assert trained_run.uploads.num_requests == 0
    assert not [path for path in trained_run.checkpoint.iterdir() if path.is_dir()]
    assert "Weights & Biases" not in trained_run.out + trained_run.err


REQUIRED = ["--tweets", "a", "--handle", "a", "--output", "a"]


def test_fine_tuning_is_huggingtweets_where_nothing_is_asked_for() -> None:
    expected = HyperParameters(
        epochs=4, learning_rate=1.372e-4, warmup_ratio=0, block_size=1024, batch_size=1, schedule="cosine"
    )
    plain = job(*REQUIRED)
    assert plain.hyper_parameters == expected == FINE_TUNING
    assert plain.rules == CleaningRules()
    assert plain.options == RunOptions()
    assert plain.scratch_model is None
    assert plain.report_to == ()
    assert plain.preview


def test_options_change_only_what_they_name() -> None:
    scratch = [*REQUIRED, "--base", "scratch"]
    assert job(*scratch).hyper_parameters == SCRATCH
    assert job(*scratch).scratch_model == SCRATCH_MODEL
    assert job(*scratch).options.keep_best
    assert not job(*scratch, "--no-keep-best").options.keep_best
    assert not job(*scratch, "--eval-fraction", "0").options.keep_best
    options = ["--no-tweets-apart", "--epochs", "3", "--num-layers", "2", "--schedule", "linear"]
    changed = job(*scratch, *options)
    assert changed.hyper_parameters == dataclasses.replace(
        SCRATCH, epochs=3, schedule="linear", tweets_apart=False
    )
    assert changed.scratch_model == dataclasses.replace(SCRATCH_MODEL, num_layers=2)
    adapted = job(*REQUIRED, "--lora-rank", "8", "--early-stopping", "2", "--drop-replies")
    assert adapted.options == RunOptions(lora=Lora(rank=8, alpha=16), early_stopping=2)
    assert adapted.rules == CleaningRules(drop_replies=True)
    assert adapted.hyper_parameters == FINE_TUNING


def test_several_processes_need_a_seed_and_do_not_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HyperParameterError, match="give --seed N"):
        job(*REQUIRED)
    assert job(*REQUIRED, "--seed", "1").seed == 1
    with pytest.raises(HyperParameterError, match="--sweep runs in one process"):
        job(*REQUIRED, "--seed", "1", "--sweep", "2")


def test_presets_check_themselves() -> None:
    with pytest.raises(HyperParameterError, match=r"dropout is 1\.0"):
        ScratchModel(vocab_size=300, hidden_size=64, num_layers=1, dropout=1.0)


def test_help_and_every_check_come_before_pytorch() -> None:
    code = (
        "import sys, training.__main__ as m, training.job, training.sample.archive\n"
        "assert m.main(['--tweets', '/nowhere', '--handle', 'a', '--output', '/nowhere/x']) == 2\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'hgt_infer', 'wandb', 'matplotlib', 'optuna'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=60)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [[], ["fetch"], ["evaluate"], ["publish"]])
def test_every_command_has_help(command: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, flag]) == 0
    assert " ".join(["Usage: python -m training", *command]) in capsys.readouterr().out


def test_the_help_has_what_the_presets_say_and_all_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    [epochs] = [line for line in lines if "--epochs" in line]
    assert "How often each tweet is trained on, ≥ 1." in epochs
    assert f"{FINE_TUNING.epochs} / {SCRATCH.epochs}" in epochs
    [min_words] = [line for line in lines if "--min-words" in line]
    assert f"[default: {CleaningRules.min_words}]" in min_words
    assert {"fetch:", "evaluate:", "publish:"} <= {line.split()[0] for line in lines if line.strip()}
