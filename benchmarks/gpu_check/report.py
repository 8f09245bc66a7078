"""What a check found, the table that shows it, and the JSON that keeps it. It is saved after every result."""

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
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

Status = Literal["passed", "failed", "skipped", "measured"]

WIDTH = 100
COLUMNS = (8, 24, 64)  # status, name, figure and below it what it says; 2 spaces between: WIDTH


class Skipped(Exception):  # noqa: N818 - not an error
    """A step that cannot be done here, and why."""


@dataclass(frozen=True)
class Result:
    """One line of the table.

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
    others' code is at work.
    """

    name: str
    run: Callable[[Any], Result | Iterable[Result]]
    seconds: float = 5.0
    is_optional: bool = False


class Report:
    """Runs steps and keeps what they find.

    Args:
        path: the JSON file, or None to keep none.
        environment: goes into the file.
        budget_s: seconds from now on after which nothing is started.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        path: Path | None,
        environment: dict[str, Any],
        *,
        budget_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.environment = environment
        self.results: list[Result] = []
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._start_s = clock()
        self._budget_s = budget_s

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    @property
    def has_failed(self) -> bool:
        return any(result.status == "failed" for result in self.results)

    def run(self, steps: Sequence[Step], subject: object) -> None:
        for step in steps:
            self.run_step(step, subject)

    def run_step(self, step: Step, subject: object) -> None:
        """Do a step and save; what it raises is one failed result, or a skipped one where it is optional."""
        start_s = self.elapsed_s
        left_s = self._budget_s - start_s
        if left_s < step.seconds:
            why = f"{left_s:.0f} s of the time are left, and it takes {step.seconds:.0f}"
            self.add(Result(step.name, "skipped", says=why))
            return
        print(f"[{start_s:6.1f} s] {step.name} …", file=sys.stderr, flush=True)
        try:
            found = step.run(subject)
            for result in [found] if isinstance(found, Result) else found:
                self.add(result)
        except Skipped as reason:
            self.add(Result(step.name, "skipped", says=str(reason)))
        except Exception as error:
            traceback.print_exc()
            status: Status = "skipped" if step.is_optional else "failed"
            says = f"raised {type(error).__name__}: {first_line(error)}"
            self.add(Result(step.name, status, says=says, values={"traceback": traceback.format_exc()}))
        gc.collect()  # device memory is freed with what refers to it
        self.seconds[step.name] = self.elapsed_s - start_s
        self.save()

    def add(self, result: Result) -> None:
        """Keep a result, save all, and show it on stderr."""
        self.results.append(result)
        line = f"{result.status}: {result.name}  {result.figure}  {result.says}".rstrip()
        print(f"[{self.elapsed_s:6.1f} s]   {line}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        record = {
            "environment": self.environment,
            "elapsed_s": self.elapsed_s,
            "has_failed": self.has_failed,
            "step_seconds": self.seconds,
            "results": [vars(result) for result in self.results],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(record, indent=1, default=as_json) + "\n")
        partial.replace(self.path)

    def table(self) -> str:
        """Every result, no line over WIDTH characters, and the counts."""
        rows = ["─" * WIDTH]
        for result in self.results:
            name, figure, says = (
                textwrap.wrap(text, width, break_on_hyphens=False)
                for text, width in zip(
                    (result.name, result.figure, result.says), (*COLUMNS[1:], COLUMNS[2]), strict=True
                )
            )
            rows += lines_of([result.status], name, [*figure, *says])
        statuses = [result.status for result in self.results]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        rows += ["─" * WIDTH, f"{counts or 'nothing'} in {self.elapsed_s:.0f} s"]
        return "\n".join(rows)


def lines_of(*columns: Sequence[str]) -> list[str]:
    """Columns side by side, line by line."""
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, COLUMNS, strict=True)).rstrip()
        for cells in zip_longest(*columns, fillvalue="")
    ]


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters."""
    line = next(iter(str(error).strip().splitlines()), "")
    return line if len(line) <= 160 else f"{line[:159]}…"


def as_json(value: object) -> object:
    """NumPy's scalars and arrays, paths and whatever else stands in a result's values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
