"""The command: its arguments, its workers, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from benchmarks.gpu_check import __main__
from benchmarks.gpu_check.children import run_child
from benchmarks.gpu_check.report import (
    Report,
    Result,
    Skipped,
    Step,
    measured,
)
from benchmarks.gpu_check.worker import GO_ON, OVER, Options, step_limit_s

CRASHING = """
import os, sys
from pathlib import Path
from benchmarks.gpu_check.report import Report, Step, measured

path, is_next = Path(sys.argv[1]), sys.argv[2] == "True"
report = Report.load(path) if is_next else Report(path, {})
chosen = [
    Step("first", lambda _: measured("first", "1", "a")),
    Step("crash", lambda _: os.abort()),
    Step("last", lambda _: measured("last", "2", "b")),
]
report.run(chosen, None)
"""


def test_without_a_gpu_it_says_so_in_one_line_and_exits_2() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--quick"],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    [line] = process.stderr.splitlines()
    assert line.startswith("error: device 'cuda:0' was asked for, but ")


def broken(_: object) -> Result:
    raise RuntimeError("no such kernel\nat line 3")


def impossible(_: object) -> Result:
    raise Skipped("no GPU")


def work_in(path: Path, chosen: list[Step]) -> Any:
    """A worker that does these steps in this process."""

    def start_worker(options: Options) -> int:
        report = Report.load(path) if options.is_next else Report(path, {}, start_s=options.start_s)
        return OVER if report.run(chosen, None) else GO_ON

    return start_worker


def test_command_exits_1_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "o.json"
    monkeypatch.setattr(__main__, "start_worker", work_in(path, [Step("a", broken), Step("b", impossible)]))
    assert __main__.main(["--device", "cpu", "--json", str(path)]) == 1
    assert "FAILED  a  " in capsys.readouterr().out
    monkeypatch.setattr(__main__, "start_worker", work_in(path, [Step("b", impossible)]))
    assert __main__.main(["--device", "cpu", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["has_failed"] is False


def test_a_step_that_ends_its_process_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "o.json"

    def start_worker(options: Options) -> int:
        command = [sys.executable, "-c", CRASHING, str(path), str(options.is_next)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    monkeypatch.setattr(__main__, "start_worker", start_worker)
    assert __main__.main(["--device", "cpu", "--json", str(path)]) == 1
    report = Report.load(path)
    assert [(result.name, result.status) for result in report.results] == [
        ("first", "measured"),
        ("crash", "failed"),
        ("last", "measured"),
    ]
    assert report.results[1].says == "its process ended by signal 6"
    assert "FAILED  crash" in capsys.readouterr().out


def test_a_worker_that_ends_behind_a_step_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a library aborts when the process ends; one that does no step more ends the command."""
    path = tmp_path / "o.json"
    left = [Step(name, lambda _: measured("x", "1", "a")) for name in "ab"]
    started: list[Options] = []

    def start_worker(options: Options) -> int:
        started.append(options)
        report = Report.load(path) if options.is_next else Report(path, {}, start_s=options.start_s)
        if left:
            report.run_step(left.pop(0), None)
        return -6

    monkeypatch.setattr(__main__, "start_worker", start_worker)
    assert __main__.main(["--json", str(path)]) == 1
    assert [options.is_next for options in started] == [False, True, True]
    assert set(Report.load(path).seconds) == {"a", "b"}


def test_worker_that_ends_before_any_step_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "start_worker", lambda _: 1)
    assert __main__.main(["--json", str(tmp_path / "o.json")]) == 1
    assert "ended with status 1 between steps" in capsys.readouterr().err


def test_ends_of_a_process_are_told_apart() -> None:
    assert (
        __main__.ending_of(1, "Timeout (0:01:00)!\nThread")
        == "it was not done in time, and its process was ended"
    )
    assert __main__.ending_of(-11, "Fatal Python error") == "its process ended by signal 11"
    assert __main__.ending_of(9, "") == "its process ended with 9"


def test_step_on_a_gpu_may_take_three_times_its_estimate_and_not_much_behind_the_budget() -> None:
    assert step_limit_s(80, left_s=400, is_cuda=True) == 240
    assert step_limit_s(1, left_s=400, is_cuda=True) == 60
    assert step_limit_s(80, left_s=100, is_cuda=True) == 145
    assert step_limit_s(1, left_s=400, is_cuda=False) == 445
    assert step_limit_s(1, left_s=-90, is_cuda=True) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "smoke", "logitz"], "no step has 'logitz' in its name; the steps are smoke, "),
        (["--budget", "0"], "--budget must be a positive number of seconds; got 0.0"),
        (["--budget", "nan"], "--budget must be a positive number of seconds; got nan"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_device_and_quick_choose_how_much_is_done() -> None:
    assert __main__.scale_of("cuda:1", is_quick=False) == "full"
    assert __main__.scale_of("cuda", is_quick=True) == "quick"
    assert __main__.scale_of("cpu", is_quick=True) == "trial"


def test_lines_of_a_child_that_fails_count(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    child = run_child("benchmarks.gpu_check.placement", [missing, "CPUExecutionProvider", "0"], timeout_s=60)
    assert child.lines == []
    assert child.error.startswith("exit 1: ")
    [path] = [tmp_path / "printing.py"]
    path.write_text('import os\nprint(\'{"a": 1}\\nnoise\\n{"b":\', flush=True)\nos._exit(7)\n')
    child = run_child("printing", [], timeout_s=60, environment={"PYTHONPATH": str(tmp_path)})
    assert (child.lines, child.error) == ([{"a": 1}], "exit 7: it said nothing")


def test_child_that_hangs_is_ended(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("print('{\"a\": 1}', flush=True)\nimport time\ntime.sleep(600)\n")
    child = run_child("hanging", [], timeout_s=1, environment={"PYTHONPATH": str(tmp_path)})
    assert child.error == "it took over 1 s"
