"""How steps are run, and what is kept and shown of them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_check.report import (
    WIDTH,
    Report,
    Result,
    Skipped,
    Step,
    first_line,
    judged,
    measured,
)
from benchmarks.gpu_check.scale import FULL
from benchmarks.gpu_check.steps import steps


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here holds a device's memory, and a collection behind each step takes long."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def quiet_report(path: Path | None = None, **options: Any) -> Report:
    return Report(path, {"cpu": "a"}, **options)


def broken(_: object) -> Result:
    raise RuntimeError("no such kernel\nat line 3")


def impossible(_: object) -> Result:
    raise Skipped("no GPU")


def breaks_off(_: object) -> Iterator[Result]:
    yield measured("first", "1", "a")
    raise RuntimeError("b")


def test_a_step_that_raises_loses_no_other_and_ends_its_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "o.json"
    report = quiet_report(path)
    chosen = [
        Step("broken", broken),
        Step("others' code", broken, is_optional=True),
        Step("impossible", impossible),
        Step("in the middle", breaks_off),
        Step("fine", lambda _: Result("fine", "passed", values={"x": np.float32(2), "y": np.arange(2)})),
    ]
    num_processes = 1
    while not report.run(chosen, None):
        num_processes += 1
        report = Report.load(path)
    assert num_processes == 4
    statuses = [(result.name, result.status) for result in report.results]
    assert statuses == [
        ("broken", "failed"),
        ("others' code", "skipped"),
        ("impossible", "skipped"),
        ("first", "measured"),
        ("in the middle", "failed"),
        ("fine", "passed"),
    ]
    assert report.results[0].says == "raised RuntimeError: no such kernel"
    assert report.has_failed
    kept = json.loads(path.read_text())
    assert kept["environment"] == {"cpu": "a"}
    assert kept["results"][-1]["values"] == {"x": 2.0, "y": [0, 1]}
    assert "no such kernel" in kept["results"][0]["values"]["traceback"]
    assert set(kept["step_seconds"]) == {step.name for step in chosen}
    assert (kept["is_over"], kept["running"]) == (True, None)


@pytest.mark.parametrize("run", [broken, lambda _: judged("a", False, "", "")])
def test_nothing_is_started_behind_an_essential_step_that_fails(run: Any) -> None:
    report = quiet_report()
    assert report.run([Step("a", run, is_essential=True), Step("b", lambda _: measured("b", "", ""))], None)
    assert [result.name for result in report.results] == ["a"]


def test_notes_of_a_step_reach_the_process_that_goes_on(tmp_path: Path) -> None:
    report = quiet_report(tmp_path / "o.json")

    def note(_: object) -> Result:
        report.notes["bandwidth"] = 3e12
        return measured("a", "", "")

    assert report.run([Step("a", note)], None)
    assert Report.load(tmp_path / "o.json").notes == {"bandwidth": 3e12}


def test_results_are_kept_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    report = quiet_report(path)

    def killed(_: object) -> Iterator[Result]:
        yield measured("first", "1", "a")
        assert [result["name"] for result in json.loads(path.read_text())["results"]] == ["first"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.run_step(Step("killed", killed), None)


def test_nothing_is_started_that_the_time_does_not_suffice_for() -> None:
    now = [0.0]
    report = quiet_report(budget_s=10, clock=lambda: now[0])

    def slow(_: object) -> Result:
        now[0] += 6
        return Result("slow", "passed")

    report.run([Step("slow", slow, 8), Step("slow too", slow, 8), Step("short", slow, 3)], None)
    assert [result.status for result in report.results] == ["passed", "skipped", "passed"]
    assert report.results[1].says == "4 s of the time are left, and it takes 8"


def test_table_shows_every_result() -> None:
    report = quiet_report()
    report.results = [
        Result("logits of steps", "passed", "max 0.031", "word " * 40),
        Result("x", "failed", "y" * 90, ""),
        Result("empty", "skipped"),
    ]
    lines = report.table().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith("ok      logits of steps           max 0.031 | word")
    text = " ".join(lines)
    assert text.count("word") == 40
    assert text.count("y") >= 90
    assert text.count("FAILED  x") == 1
    assert lines[-2].split() == ["skip", "empty"]
    assert lines[-1].startswith("1 passed, 1 failed, 1 skipped in ")


def test_whole_output_of_a_full_run_is_below_12_000_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Three long results a step, and errors in some."""

    def many(_: object) -> Iterator[Result]:
        for number in range(3):
            yield measured(f"result {number} of a step", "12,345 (12,000–12,999) tok/s", "word " * 90)

    report = quiet_report()
    chosen = [Step(step.name, broken if number % 6 == 5 else many) for number, step in enumerate(steps(FULL))]
    while not report.run(chosen, None):
        pass
    table = report.table()
    assert len(report.results) > 70
    assert all(result.name in table for result in report.results)
    assert len(table) + len(capsys.readouterr().err) < 11_500
    assert max(map(len, table.splitlines())) <= WIDTH


def test_of_a_long_message_what_cuda_says_is_kept() -> None:
    error = RuntimeError(f"Non-zero status code {'x' * 300} CUDA failure 901: not permitted ; file=a.cc")
    assert first_line(error) == "CUDA failure 901: not permitted ; file=a.cc"
    assert first_line(RuntimeError("short: CUDA failure 2\nmore")) == "short: CUDA failure 2"
