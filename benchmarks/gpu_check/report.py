"""What a check found, the table that shows it, and the JSON that keeps it. It is saved after every result.

Progress and table together stay below 12,000 characters: some terminals keep no more of a command's end.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Status = Literal["passed", "failed", "skipped", "measured"]

SHOWN_STATUS: dict[Status, str] = {"passed": "ok", "failed": "FAILED", "skipped": "skip", "measured": ""}
WIDTH = 110
INDENT = 8  # the width of the status
NAME_WIDTH = 24
MAX_TABLE_CHARACTERS = 9_500
ROW_LIMITS = (400, 300, 220, 160, 120, 90, 60, 40)  # characters of a row's text; the first that fits is taken
MAX_LINE = 130  # of what is said on stderr


class Skipped(Exception):  # noqa: N818 - not an error
    """A step that cannot be done here, and why."""


@dataclass(frozen=True)
class Result:
    """One row of the table.

    figure: the number that matters, with its unit. says: what it means, in a sentence or less.
    values: raw values for the JSON.
    """

    name: str
    status: Status
    figure: str = ""
    says: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def judged(name: str, is_good: bool, figure: str, says: str, **values: Any) -> Result:
    """A check's result, passed or failed."""
    return Result(name, "passed" if is_good else "failed", figure, says, values)


def measured(name: str, figure: str, says: str, **values: Any) -> Result:
    """A figure that nothing is demanded of."""
    return Result(name, "measured", figure, says, values)


@dataclass(frozen=True)
class Step:
    """Something to do.

    run: takes what is checked, returns a result, or several as they come. seconds: what it takes at most
    as a rule; it is not started where less is left. is_optional: an error in it fails nothing, since
    others' code is at work. is_essential: nothing is started behind its failure.
    """

    name: str
    run: Callable[[Any], Result | Iterable[Result]]
    seconds: float = 5.0
    is_optional: bool = False
    is_essential: bool = False


class Report:
    """Runs steps and keeps what they find.

    Args:
        path: the JSON file, or None to keep none.
        environment: goes into the file.
        budget_s: seconds from the start on after which nothing is started.
        start_s: the start, by the clock; None for now.
        clock: seconds, the same in every process.

    Attributes:
        results: of all steps, in order.
        notes: what later steps need of earlier ones; kept in the file.
        done: names of steps that are done or skipped.
        running: the step that is not done yet.
        is_over: whether nothing more is to be started.
    """

    def __init__(
        self,
        path: Path | None,
        environment: dict[str, Any],
        *,
        budget_s: float = math.inf,
        start_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.environment = environment
        self.results: list[Result] = []
        self.seconds: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        self.is_over = False
        self.done: list[str] = []
        self.running: Step | None = None
        self._clock = clock
        self._start_s = clock() if start_s is None else start_s
        self._budget_s = budget_s

    @classmethod
    def load(cls, path: Path) -> Report:
        """The report that a process has left in its file, to go on with it."""
        record = json.loads(path.read_text())
        report = cls(path, record["environment"], budget_s=record["budget_s"], start_s=record["start_s"])
        report.results = [Result(**result) for result in record["results"]]
        report.seconds, report.notes = record["step_seconds"], record["notes"]
        report.done, report.is_over = record["done"], record["is_over"]
        if record["running"] is not None:
            report.running = Step(run=lambda _: [], **record["running"])
        return report

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    @property
    def has_failed(self) -> bool:
        return any(result.status == "failed" for result in self.results)

    def run(
        self, steps: Sequence[Step], subject: object, *, watch: Callable[[Step], None] | None = None
    ) -> bool:
        """Do the steps that are not done yet; whether all is over.

        Behind a step that raised it is not: a GPU's error stays with its process, so another one goes on.

        Args:
            steps: all of them.
            subject: what they are given.
            watch: called before each step.
        """
        for step in steps:
            if self.is_over:
                break
            if step.name not in self.done:
                if watch is not None:
                    watch(step)
                if self.run_step(step, subject):
                    return self.is_over
        self.is_over = True
        self.save()
        return True

    def run_step(self, step: Step, subject: object) -> bool:
        """Do a step and save; whether it raised: a failed result, or a skipped one where it is optional."""
        start_s = self.elapsed_s
        left_s = self._budget_s - start_s
        if left_s < step.seconds:
            why = f"{max(left_s, 0):.0f} s of the time are left, and it takes {step.seconds:.0f}"
            self.add(Result(step.name, "skipped", says=why))
            self.done.append(step.name)
            return False
        print(f"[{start_s:5.1f} s] {step.name}", file=sys.stderr, flush=True)
        self.running = step
        self.save()
        error = ""
        try:
            found = step.run(subject)
            for result in [found] if isinstance(found, Result) else found:
                self.add(result)
        except Skipped as reason:
            self.add(Result(step.name, "skipped", says=str(reason)))
        except Exception as raised:
            error = f"raised {type(raised).__name__}: {first_line(raised)}"
            self.end_step(error, traceback=traceback.format_exc())
        gc.collect()  # device memory is freed with what refers to it
        self.seconds[step.name] = self.elapsed_s - start_s
        if not error:
            self.end_step("")
        self.save()
        return bool(error)

    def end_step(self, error: str, **values: Any) -> None:
        """Let the running step be done; an error is a result of it, with these values."""
        step = self.running
        assert step is not None
        if error:
            self.add(
                Result(step.name, "skipped" if step.is_optional else "failed", says=error, values=values)
            )
        self.done.append(step.name)
        self.running = None
        if step.is_essential and self.has_failed:
            self.is_over = True
        self.save()

    def add(self, result: Result) -> None:
        """Keep a result and save all; one that failed is shown on stderr too."""
        self.results.append(result)
        if result.status == "failed":
            line = f"FAILED  {result.name}: {text_of(result)}"
            print(shortened(line, MAX_LINE), file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        """Write the JSON; the one before it stays until this one is whole."""
        if self.path is None:
            return
        step = self.running
        attributes = ("name", "seconds", "is_optional", "is_essential")
        record = {
            "environment": self.environment,
            "start_s": self._start_s,
            "budget_s": self._budget_s,
            "elapsed_s": self.elapsed_s,
            "is_over": self.is_over,
            "has_failed": self.has_failed,
            "running": step and {name: getattr(step, name) for name in attributes},
            "done": self.done,
            "notes": self.notes,
            "step_seconds": self.seconds,
            "results": [vars(result) for result in self.results],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(record, indent=1, default=as_json) + "\n")
        partial.replace(self.path)

    def table(self) -> str:
        """Every result and the counts: no line over WIDTH, the texts as long as the whole allows.

        A failed result may be three times as long as another.
        """
        statuses = [result.status for result in self.results]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        last = f"{counts or 'nothing'} in {self.elapsed_s:.0f} s"
        table = ""
        for limit in ROW_LIMITS:
            table = "\n".join([*(row_of(result, limit) for result in self.results), last])
            if len(table) <= MAX_TABLE_CHARACTERS:
                break
        return table


def row_of(result: Result, limit: int) -> str:
    """A result's lines in the table."""
    status = SHOWN_STATUS[result.status]
    text = shortened(text_of(result), 3 * limit if result.status == "failed" else limit)
    lines = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{status:<{INDENT}}{shortened(result.name, 40):<{NAME_WIDTH}}  ",
        subsequent_indent=" " * INDENT,
        break_on_hyphens=False,
    )
    return "\n".join(lines or [f"{status:<{INDENT}}{result.name}"])


def text_of(result: Result) -> str:
    """What a result shows beside its name."""
    return " | ".join(filter(None, (result.figure, result.says)))


def shortened(text: str, limit: int) -> str:
    """A text in one line, of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters; of CUDA's, what CUDA says."""
    line = next(iter(str(error).strip().splitlines()), "")
    start = line.find("CUDA failure")
    return shortened(line[start:] if start > 0 and len(line) > 160 else line, 160)


def as_json(value: object) -> object:
    """NumPy's scalars and arrays, paths and whatever else stands in a result's values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
