"""Where a run keeps what is not finished: a folder beside the output, locked by one run, that outlives a
kill.

`OUTPUT` appears by one rename when all of it is there. What belongs into it is written by others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from training.errors import OutputFolderError, TrainingError

SETTINGS = "run.json"
_LOCK = "lock"


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one run, `.NAME.training` beside the output NAME.

    Attributes:
        path: the folder.
        output: what it becomes.
        resumed: whether an earlier run with the same settings left it.
        settings: what decides about the result, as kept in run.json.
    """

    path: Path
    output: Path
    resumed: bool
    settings: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The folder that becomes the output; whoever is first to write makes it."""
        return self.path / "checkpoint"

    def finish(self, *, force: bool) -> None:
        """Put the checkpoint in the output's place. What was there goes only when the new one stands.

        Raises:
            OutputFolderError: something else stands there by now.
        """
        check_output(self.output, force=force)
        replaced = self.path / "replaced"
        if self.output.exists():
            self.output.rename(replaced)
        try:
            self.checkpoint.rename(self.output)
        except OSError:
            if replaced.exists():
                replaced.rename(self.output)
            raise


def work_path(output: Path) -> Path:
    """Return where a run that makes `output` works.

    >>> work_path(Path("models/goose")).name
    '.goose.training'
    """
    output = output.resolve()
    return output.with_name(f".{output.name}.training")


def check_output(output: Path, *, force: bool) -> None:
    """Check that a checkpoint may be written to `output`.

    Raises:
        OutputFolderError: it is a file, or a folder that is not empty without `force`, or, even with it, a
            folder that is no checkpoint.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputFolderError(f"output {output} is a file, expected a folder or nothing")
    if any(output.iterdir()):
        if not force:
            raise OutputFolderError(f"output {output} is not empty; choose another folder or give --force")
        if not (output / "config.json").is_file():
            raise OutputFolderError(
                f"output {output} is not a checkpoint (no config.json); --force only replaces those"
            )


@contextmanager
def work_folder(
    output: Path, settings: Mapping[str, Any], *, resume: bool, force: bool
) -> Iterator[WorkFolder]:
    """Lock the work folder of `output` while the block runs.

    It is removed when the block ends, also by a TrainingError: what was given leads nowhere. Any other error
    after the first training checkpoint leaves it, a kill in any case: `resume` goes on from there.

    Args:
        output: the checkpoint folder to be.
        settings: what decides about the result: plain JSON values.
        resume: go on with what an earlier run left; a new run where nothing is.
        force: throw away what an earlier run left, and let `finish` replace a checkpoint.

    Raises:
        OutputFolderError: as `check_output`; another run is at work; the folder cannot be made; an earlier
            run left something and neither `resume` nor `force` is given, or its settings differ.
    """
    check_output(output, force=force)
    path = work_path(output)
    with _locked(path, output):
        left = path / SETTINGS
        resumed = left.is_file()
        if resumed and not resume:
            if not force:
                raise OutputFolderError(
                    f"an interrupted run for {output} was found; --resume goes on with it, "
                    "--force begins anew"
                )
            _clear(path)
            resumed = False
        if resumed:
            _check_settings(read_json(left), settings, output)
        else:
            _clear(path)
            write_json(left, settings)
        try:
            yield WorkFolder(path, output.resolve(), resumed, dict(settings))
        except BaseException as error:
            saved = any(path.glob("**/checkpoint-*/trainer_state.json"))
            if isinstance(error, TrainingError) or not saved:
                shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def seed_left_in(output: Path) -> int | None:
    """Return the seed of an interrupted run for `output`; None where there is none."""
    try:
        seed = read_json(work_path(output) / SETTINGS).get("seed")
    except (OutputFolderError, OSError):
        return None
    return seed if isinstance(seed, int) else None


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, indented, UTF-8; the file is whole or not there."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(
        json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        OutputFolderError: it is no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputFolderError(f"{path}: expected JSON ({error})") from error
    if not isinstance(record, dict):
        raise OutputFolderError(f"{path}: expected a JSON object, found {type(record).__name__}")
    return record


def _check_settings(left: Mapping[str, Any], given: Mapping[str, Any], output: Path) -> None:
    given = json.loads(json.dumps(given))
    for name in sorted({*left, *given}):
        if left.get(name) != given.get(name):
            raise OutputFolderError(
                f"the interrupted run for {output} had another {name}: {left.get(name)!r}, now "
                f"{given.get(name)!r}; --force begins anew"
            )


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    lock_path = path / _LOCK
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(lock_path)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise OutputFolderError(f"output {output} is being written by another run") from None
        except OSError as error:
            reason = error.strerror or error
            raise OutputFolderError(f"output {output} cannot be written ({reason})") from error
        if lock_path.exists():
            break
        lock.release()  # the run that held it has removed the folder meanwhile
    try:
        yield
    finally:
        lock.release()
