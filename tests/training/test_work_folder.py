from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from training.errors import DivergedError, OutputFolderError
from training.work_folder import WorkFolder, read_json, seed_left_in, work_folder, work_path, write_json

SETTINGS = {"seed": 7, "epochs": 4}


def save_step(work: WorkFolder) -> None:
    """Leave what a training checkpoint leaves."""
    step = work.path / "steps" / "checkpoint-1"
    step.mkdir(parents=True)
    (step / "trainer_state.json").write_text("{}")


def make_checkpoint(work: WorkFolder, content: str = "new") -> None:
    work.checkpoint.mkdir()
    (work.checkpoint / "config.json").write_text(content)


def interrupt(output: Path) -> None:
    with pytest.raises(KeyboardInterrupt), work_folder(output, SETTINGS, resume=False, force=False) as work:
        save_step(work)
        raise KeyboardInterrupt


def test_the_output_appears_whole_and_the_work_folder_goes(tmp_path: Path) -> None:
    output = tmp_path / "new" / "model"
    with work_folder(output, SETTINGS, resume=False, force=False) as work:
        make_checkpoint(work)
        assert not output.exists()
        work.finish(force=False)
    assert (output / "config.json").read_text() == "new"
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_an_interrupted_run_is_gone_on_with_only_on_request(tmp_path: Path) -> None:
    output = tmp_path / "model"
    interrupt(output)
    with (
        pytest.raises(OutputFolderError, match="--resume goes on with it, --force begins anew"),
        work_folder(output, SETTINGS, resume=False, force=False),
    ):
        pass
    assert seed_left_in(output) == 7
    with work_folder(output, SETTINGS, resume=True, force=False) as work:
        assert work.resumed
        assert (work.path / "steps" / "checkpoint-1").is_dir()
        make_checkpoint(work)
        work.finish(force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_force_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "model"
    interrupt(output)
    with work_folder(output, SETTINGS | {"seed": 8}, resume=False, force=True) as work:
        assert not work.resumed
        assert not (work.path / "steps").exists()
        assert read_json(work.path / "run.json")["seed"] == 8


def test_resume_without_anything_left_is_a_new_run(tmp_path: Path) -> None:
    with work_folder(tmp_path / "model", SETTINGS, resume=True, force=False) as work:
        assert not work.resumed


def test_other_settings_cannot_be_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "model"
    interrupt(output)
    with (
        pytest.raises(OutputFolderError, match="had another epochs: 4, now 5; --force begins anew"),
        work_folder(output, SETTINGS | {"epochs": 5}, resume=True, force=False),
    ):
        pass
    assert (work_path(output) / "steps" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_an_error_after_a_training_checkpoint_leaves_it(tmp_path: Path, error: Exception) -> None:
    output = tmp_path / "model"
    with pytest.raises(type(error)), work_folder(output, SETTINGS, resume=False, force=False) as work:
        save_step(work)
        raise error
    assert (work_path(output) / "steps" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_error_before_it_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), work_folder(tmp_path / "x", SETTINGS, resume=False, force=False):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_end_well_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DivergedError),
        work_folder(tmp_path / "x", SETTINGS, resume=False, force=False) as work,
    ):
        save_step(work)
        raise DivergedError("training diverged")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_on_the_same_output_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with work_folder(output, SETTINGS, resume=False, force=False) as work:
        save_step(work)
        for resume, force in ((False, False), (True, False), (False, True)):
            with (
                pytest.raises(OutputFolderError, match="is being written by another run"),
                work_folder(output, SETTINGS, resume=resume, force=force),
            ):
                pass
        assert (work.path / "steps" / "checkpoint-1").is_dir()
        make_checkpoint(work)
        work.finish(force=False)
    assert (output / "config.json").exists()


def test_a_kill_frees_the_lock_and_leaves_the_work(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from training.work_folder import work_folder\n"
        "with work_folder(Path(sys.argv[1]), {'seed': 7, 'epochs': 4}, resume=False, force=False) as work:\n"
        "    (work.path / 'kept').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    output = tmp_path / "model"
    root = ROOT
    killed = subprocess.run([sys.executable, "-c", code, str(output)], cwd=root, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with work_folder(output, SETTINGS, resume=True, force=False) as work:
        assert work.resumed
        assert (work.path / "kept").exists()


def _run(output: Path, results: multiprocessing.Queue[str]) -> None:
    try:
        with work_folder(output, SETTINGS, resume=False, force=True) as work:
            make_checkpoint(work, str(os.getpid()))
            work.finish(force=True)
            results.put("done")
    except OutputFolderError:
        results.put("refused")


def test_runs_that_start_together_never_share_the_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    runs = [context.Process(target=_run, args=(tmp_path / "model", results)) for _ in range(4)]
    for run in runs:
        run.start()
    outcomes = [results.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert "done" in outcomes
    assert {"done", "refused"} >= set(outcomes)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_replaced_checkpoint_comes_back_where_the_new_one_cannot_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "config.json").write_text("old")
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.name == "checkpoint":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with (
        pytest.raises(OSError, match="No space"),
        work_folder(output, SETTINGS, resume=False, force=True) as work,
    ):
        make_checkpoint(work)
        work.finish(force=True)
    assert (output / "config.json").read_text() == "old"


def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name, message in (("file", "is a file"), ("folder", r"is not a checkpoint \(no config.json\)")):
        with (
            pytest.raises(OutputFolderError, match=message),
            work_folder(tmp_path / name, SETTINGS, resume=False, force=True),
        ):
            pass
    with (
        pytest.raises(OutputFolderError, match="cannot be written"),
        work_folder(tmp_path / "file" / "x", SETTINGS, resume=False, force=False),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "föhn"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"text": "föhn"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"text": "föhn"}
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(OutputFolderError, match="expected a JSON object, found list"):
        read_json(tmp_path / "b.json")
