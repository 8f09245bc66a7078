"""metrics.jsonl: what the Trainer logs while it trains, a JSON object a line, each step once.

Who else is told of the entries is `tracking`'s matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from training.errors import OutputFolderError

VALUES = ("loss", "learning_rate", "grad_norm", "eval_loss")


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes the Trainer's log entries to a file, and hands them to a listener.

    An entry is `{"step", "epoch", "loss", "learning_rate", "grad_norm"}` or `{"step", "epoch", "eval_loss"}`,
    without values that are not finite. A run that goes on from a training checkpoint first drops the entries
    of later steps, which it logs again, and hands the others to the listener, who so hears the whole run.

    Args:
        path: the file; a new run replaces it.
        listener: called with each entry.
    """

    def __init__(self, path: Path, listener: Callable[[Mapping[str, float]], None] | None = None) -> None:
        self._path = path
        self._listener = listener

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the file, or go on with it."""
        if not state.is_world_process_zero:
            return
        before = read_metrics(self._path) if state.global_step and self._path.exists() else []
        kept = [entry for entry in before if entry["step"] <= state.global_step]
        aside = self._path.with_name(self._path.name + ".partial")
        aside.write_text("".join(map(_line, kept)), encoding="utf-8")
        aside.replace(self._path)
        for entry in kept:
            self._tell(entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write an entry."""
        values = {name: float(logs[name]) for name in VALUES if name in (logs or {})}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if not state.is_world_process_zero or not values.keys() & {"loss", "eval_loss"}:
            return
        entry = {"step": state.global_step, "epoch": float(state.epoch or 0), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))
        self._tell(entry)

    def _tell(self, entry: Mapping[str, float]) -> None:
        if self._listener is not None:
            self._listener(entry)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the entries of a metrics.jsonl, in the order of its lines.

    A last line that has no end, of a run that was killed while it wrote, is left out.

    Raises:
        OutputFolderError: a line is not an entry.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "metrics.jsonl")
    ...     _ = path.write_text('{"step": 5, "epoch": 0.5, "loss": 2.0}\\n{"step": 10, "ep')
    ...     read_metrics(path)
    [{'step': 5, 'epoch': 0.5, 'loss': 2.0}]
    """
    entries = []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise OutputFolderError(f"{path}:{number}: expected JSON ({error})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise OutputFolderError(f"{path}:{number}: expected an object with a `step`")
        entries.append(entry)
    return entries


def _line(entry: Mapping[str, float]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"
