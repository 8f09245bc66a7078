"""The command line: what it refuses, says and leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main, parse_arguments, settings
from training.checkpoint import staged
from training.errors import HyperParameterError, OutputFolderError
from training.presets import FINE_TUNING, SCRATCH, SCRATCH_MODEL, HyperParameters, ScratchModel
from training.sample_archive import sample_archive

TINY = ["--base", "scratch", "--hidden-size", "64", "--num-layers", "1", "--vocab-size", "300"]
TINY += ["--block-size", "64", "--batch-size", "8", "--epochs", "1"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tweets.js").write_text(sample_archive(num_tweets=150), encoding="utf-8")
    (tmp_path / "out").mkdir()
    options = {
        "tweets": tmp_path / "in" / "tweets.js",
        "handle": "goose",
        "output": tmp_path / "out" / "model",
    }
    return [part for option, value in options.items() for part in (f"--{option}", str(value))]


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
        (["--handle", "no handle"], "handle 'no handle' is not"),
        (["--tweets", "/nowhere/tweets.js"], "/nowhere/tweets.js: cannot be read"),
        (["--eval-fraction", "0.9"], "eval_fraction is 0.9, expected 0 to 0.5"),
        (["--epochs", "0"], "epochs is 0, expected 1 or more"),
        (["--batch-size", "-1"], "batch_size is -1"),
        (["--block-size", "1"], "block_size is 1, expected 2 or more"),
        (["--learning-rate", "0"], "learning_rate is 0.0, expected a number over 0"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--warmup-steps", "-1"], "warmup_steps is -1"),
        (["--threads", "0"], "threads is 0, expected 1 or more"),
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


def test_a_small_archive_is_refused_with_its_counts(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = tmp_path / "small.csv"
    small.write_text("text\nthe goose left again\nHonk.\n")
    message = failure([*arguments, "--tweets", str(small)], capsys)
    assert "at least 6,000 are needed: 2 downloaded, 0 retweets, 1 short, 1 kept" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_option_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--shuffle", "no"])
    assert error.value.code == 2


def test_a_base_that_is_not_there_leaves_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    message = failure([*arguments, "--base", str(tmp_path / "empty")], capsys)
    assert "cannot be loaded: the folder has no config.json" in message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_a_run_that_fails_at_its_end_leaves_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> str:
        assert any((tmp_path / "out").iterdir())  # the staging folder, weights in it
        raise error

    monkeypatch.setattr("training.__main__.model_card", fail)
    if isinstance(error, OSError):
        assert main([*arguments, *TINY]) == 2
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            main([*arguments, *TINY])
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_leaves_nothing(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.finetune.finetune", interrupt)
    assert main([*arguments, *TINY]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_loss_that_is_not_finite_leaves_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "training diverged" in failure([*arguments, *TINY, "--learning-rate", "1e36"], capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_force_replaces_a_checkpoint_and_only_that(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "out" / "model"
    output.mkdir()
    assert main([*arguments, *TINY, "--seed", "1"]) == 0  # an empty folder is no obstacle
    (output / "old").touch()
    capsys.readouterr()

    assert "is not empty; choose another folder or give --force" in failure([*arguments, *TINY], capsys)
    assert (output / "old").exists()
    failure([*arguments, *TINY, "--force", "--learning-rate", "1e36"], capsys)
    assert (output / "old").exists()  # a failed run keeps what was there
    assert main([*arguments, *TINY, "--force"]) == 0
    assert not (output / "old").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]

    (output / "config.json").unlink()
    assert "is not a checkpoint (no config.json)" in failure([*arguments, *TINY, "--force"], capsys)
    assert (output / "model.safetensors").exists()


def test_a_file_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputFolderError, match="is a file"), staged(tmp_path / "file", force=True):
        pass
    with (
        pytest.raises(OutputFolderError, match="cannot be written"),
        staged(tmp_path / "file" / "x", force=False),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_it_prints_counts_warning_seed_losses_and_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, *TINY, "--seed", "77"]) == 0
    out, err = capsys.readouterr()
    assert "tweets downloaded      150\n" in out
    assert "seed 77" in out
    assert "evaluation loss before" in out
    assert "perplexity" in out
    assert f"checkpoint in {tmp_path / 'out' / 'model'}" in out
    assert "warning: the tweets are only" in err
    assert "'loss'" not in out + err  # no log lines between


def test_fine_tuning_takes_the_published_hyper_parameters() -> None:
    required = ["--tweets", "a", "--handle", "a", "--output", "a"]
    expected = HyperParameters(
        epochs=4, learning_rate=1.372e-4, warmup_steps=0, block_size=1024, batch_size=1
    )
    assert settings(parse_arguments(required)) == (expected, None)
    assert expected == FINE_TUNING


def test_options_change_only_what_they_name() -> None:
    required = ["--tweets", "a", "b", "--handle", "a", "--output", "a", "--base", "scratch"]
    assert settings(parse_arguments(required)) == (SCRATCH, SCRATCH_MODEL)
    hyper_parameters, size = settings(parse_arguments([*required, "--epochs", "3", "--num-layers", "2"]))
    assert hyper_parameters.epochs == 3
    assert hyper_parameters.learning_rate == SCRATCH.learning_rate
    assert size == ScratchModel(
        vocab_size=SCRATCH_MODEL.vocab_size,
        hidden_size=SCRATCH_MODEL.hidden_size,
        num_layers=2,
        dropout=SCRATCH_MODEL.dropout,
    )


def test_presets_check_themselves() -> None:
    with pytest.raises(HyperParameterError, match=r"dropout is 1\.0"):
        ScratchModel(vocab_size=300, hidden_size=64, num_layers=1, dropout=1.0)


def test_help_and_every_check_come_before_pytorch() -> None:
    code = (
        "import sys, training.__main__ as m, training.model_card, training.sample_archive\n"
        "assert m.main(['--tweets', '/nowhere', '--handle', 'a', '--output', '/nowhere/x']) == 2\n"
        "loaded = {'torch', 'transformers', 'tokenizers', 'numpy', 'hgt_infer'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, timeout=60)
