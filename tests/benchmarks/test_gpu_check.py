"""The check of a GPU: its arithmetic, what it reads and reports, and the command. Nothing runs a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from support.paths import ROOT

from benchmarks.gpu_check import __main__
from benchmarks.gpu_check.children import run_child
from benchmarks.gpu_check.figures import (
    agreement,
    chi_squared,
    chi_squared_p,
    compare_logits,
    step_bytes,
)
from benchmarks.gpu_check.graph_nodes import count_nodes
from benchmarks.gpu_check.placement import parse
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
from benchmarks.gpu_check.steps import steps
from benchmarks.gpu_check.subject import FULL, read_texts, write_seeded_checkpoint
from benchmarks.gpu_check.worker import GO_ON, OVER, Options, step_limit_s
from benchmarks.measure import environment
from training.corpus.cleaning import clean
from training.tweets.reading import read_tweets

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 256, "vocab_size": 400}
ALLOWED = (
    "benchmarks", "hgt_infer", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors",
    "tokenizers", "ml_dtypes", "tqdm", "filelock",
)  # fmt: skip
"""What the check may import: hgt_infer's own dependencies."""
ALLOWED_BY_THEM = ("google", "packaging", "typing_extensions", "sympy", "mpmath", "flatbuffers")
FINDER = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if path is None and first not in sys.stdlib_module_names and first not in {allowed!r}:
            raise ModuleNotFoundError(f"{{name}} is not allowed", name=name)

sys.meta_path.insert(0, Finder())
"""

# What is calculated


@pytest.mark.parametrize("degrees", [5, 49, 300, 5_000])
@pytest.mark.parametrize("quantile", [0.5, 1e-2, 1e-4])
def test_p_of_chi_squared_is_scipys(degrees: int, quantile: float) -> None:
    statistic = scipy.stats.chi2.isf(quantile, degrees)
    assert chi_squared_p(statistic, degrees) == pytest.approx(quantile, abs=1e-3, rel=0.35)


def test_draws_from_the_distribution_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(300, 0.3))
    probs[probs < 1e-4] = 0
    probs /= probs.sum()
    found = chi_squared(rng.choice(300, 20_000, p=probs).tolist(), probs)
    assert found.p > 1e-3
    assert found.num_outside == 0
    assert found.degrees < np.count_nonzero(probs)
    skewed = probs**1.2
    assert chi_squared(rng.choice(300, 20_000, p=skewed / skewed.sum()).tolist(), probs).p < 1e-4


def test_draw_of_an_impossible_token_is_counted() -> None:
    found = chi_squared([0] * 50 + [1] * 50 + [2], np.array([0.5, 0.5, 0.0]))
    assert (found.num_outside, found.degrees) == (1, 1)


def test_only_one_possible_token_has_nothing_to_test() -> None:
    assert chi_squared([3] * 10, np.eye(5)[3]).p == 1.0


def test_logits_are_compared_by_rows_and_by_distributions() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(130, 50)).astype(np.float32)
    actual = reference.copy()
    actual[100, 3] += 0.5
    found = compare_logits(list(actual), list(reference), absolute=0.1, relative=0.01)
    assert (found.num_rows, found.num_not_finite, found.top1) == (130, 0, pytest.approx(1, abs=0.01))
    assert found.max_abs == pytest.approx(0.5, abs=1e-6)
    assert found.mean_abs == pytest.approx(0.5 / 130 / 50, rel=1e-5)
    assert found.max_excess == pytest.approx(0.4 - 0.01 * abs(reference[100, 3]), abs=1e-6)
    p, q = (torch.log_softmax(torch.tensor(row[100]).double(), 0) for row in (reference, actual))
    divergence = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
    assert found.max_kl == pytest.approx(divergence, rel=1e-9)
    assert found.mean_kl == pytest.approx(divergence / 130, rel=1e-9)


def test_logits_that_are_not_finite_are_counted_unless_the_reference_has_them_too() -> None:
    reference = np.array([[0.0, -np.inf, 1.0]], np.float32)
    assert compare_logits(reference, reference, absolute=0, relative=0).num_not_finite == 0
    broken = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert compare_logits(broken, reference, absolute=0, relative=0).num_not_finite == 2


def test_agreement_tells_where_the_first_request_parts() -> None:
    found = agreement([(1, 2), (3, 4, 5), (6,)], [(1, 2), (3, 4, 6), (6, 7)])
    assert (found.num_requests, found.num_different, found.first) == (3, 2, (1, 2))
    assert found.num_equal_tokens == 2 + 2 + 1
    assert found.flips == 2 / 7
    assert str(found) == "2 of 3 differ, first request 1 at step 2"
    assert str(agreement([(1,)], [(1,)])) == "1 of 1 equal"


def test_bound_of_a_step_counts_weights_cache_and_logits() -> None:
    num_bytes = step_bytes(247_000_000, 36_864, [100] * 64, 2 * 50_257)
    assert num_bytes == 247_000_000 + 36_864 * 6_400 + 2 * 50_257 * 64
    assert num_bytes / 4.3e12 == pytest.approx(114e-6, rel=0.02)


# What is read

MIXED_LOG = """
2026-01-01 [V:onnxruntime:, session_state.cc:1578 VerifyEachNodeIsAssignedToAnEp] Node placements
2026-01-01 [V:onnxruntime:, s.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Concat (a/Concat_node_1)
2026-01-01 [V:onnxruntime:, s.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 3
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MatMul (h.0/MatMul_node_5)
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MemcpyToHost (Memcpy)
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Add (h.0/Add_node_6)
\x1b[0;93m2026-01-01 [W:onnxruntime:, transformer_memcpy.cc:111 ApplyImpl] 2 Memcpy nodes are added to the graph g
"""  # noqa: E501
WHOLE_LOG = (
    "2026-01-01 [V:onnxruntime:, s.cc:1581 VerifyEachNodeIsAssignedToAnEp]  "
    "All nodes placed on [CUDAExecutionProvider]. Number of nodes: 474\n"
)


def test_placement_is_read_from_the_log() -> None:
    placement = parse(MIXED_LOG)
    assert placement.num_nodes == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3}
    assert placement.nodes["CPUExecutionProvider"] == ["Concat (a/Concat_node_1)"]
    assert placement.num_copies == 2
    assert placement.elsewhere("CUDAExecutionProvider") == 1
    whole = parse(WHOLE_LOG)
    assert (whole.elsewhere("CUDAExecutionProvider"), whole.num_copies) == (0, 0)


def test_log_without_placement_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"says nothing of placement; it ends: 'Segmentation fault'"):
        parse("Segmentation fault\n")


def test_gpus_are_read_from_nvidia_smi() -> None:
    lines = "NVIDIA H200, 580.159.04, 143771, 4, 345, 1980, 3201, 700.00, 30, 0, 9.0\nT4, 1, [N/A]\n\n"
    first, second = environment.parse_gpus(lines)
    assert (first["name"], first["memory_mib"], first["sm_mhz"]) == ("NVIDIA H200", "143771", "345")
    assert second == {"name": "T4", "driver_version": "1"}


def test_environment_needs_no_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    captured = environment.capture_environment()
    assert captured["physical_cores"] is None
    assert captured["memory_gb"] > 0


# What is reported


def quiet_report(path: Path | None = None, **options: Any) -> Report:
    return Report(path, {"cpu": "a"}, **options)


def broken(_: object) -> Result:
    raise RuntimeError("no such kernel\nat line 3")


def impossible(_: object) -> Result:
    raise Skipped("no GPU")


def breaks_off(_: object) -> Iterator[Result]:
    yield measured("first", "1", "a")
    raise RuntimeError("b")


def test_texts_are_those_of_the_sample_archive() -> None:
    texts = read_texts()
    kept = list(clean(read_tweets([ROOT / "training" / "sample" / "tweets.js"])).kept)
    assert len(texts) >= 64
    assert texts == kept[: len(texts)]
    assert not any("http" in text or text.startswith("RT @") for text in texts)


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


def test_whole_output_of_a_full_run_is_below_12_000_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three long results a step, and errors in some."""

    def many(_: object) -> Iterator[Result]:
        for number in range(3):
            yield measured(f"result {number} of a step", "12,345 (12,000–12,999) tok/s", "word " * 90)

    report = quiet_report(tmp_path / "o.json")
    chosen = [Step(step.name, broken if number % 6 == 5 else many) for number, step in enumerate(steps(FULL))]
    while not report.run(chosen, None):
        pass
    table = report.table()
    assert len(report.results) > 70
    assert all(result.name in table for result in report.results)
    assert len(table) + len(capsys.readouterr().err) < 11_500
    assert max(map(len, table.splitlines())) <= WIDTH


# Processes of their own


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
    child = run_child("hanging", [], timeout_s=3, environment={"PYTHONPATH": str(tmp_path)})
    assert child.error == "it took over 3 s"


class FakeCapture:
    """The CUDA runtime's functions of a capture: four nodes, or an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cudaStreamEndCapture":
                arguments[1]._obj.value = 1
            elif name == "cudaGraphGetNodes":
                arguments[2]._obj.value = 4
                if arguments[1] is not None:
                    arguments[1][:] = [0, 2, 2, 99]
            elif name == "cudaGraphNodeGetType":
                arguments[1]._obj.value = arguments[0] or 0
            return 900 if name == self.failing else 0

        return call


def test_nodes_of_a_captured_run_are_counted_by_type() -> None:
    library, runs = FakeCapture(), []
    assert count_nodes(library, 7, lambda: runs.append(1)) == {"kernel": 1, "memset": 2, "type 99": 1}
    assert runs == [1]
    assert library.calls[-1] == "cudaGraphDestroy"


@pytest.mark.parametrize("failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphGetNodes"])
def test_capture_that_fails_is_an_error_and_is_ended(failing: str) -> None:
    library = FakeCapture(failing)
    with pytest.raises(RuntimeError, match=f"{failing}: error 900"):
        count_nodes(library, 7, lambda: None)
    assert ("cudaStreamEndCapture" in library.calls) == (failing != "cudaStreamBeginCapture")


def test_capture_is_ended_where_the_run_raises() -> None:
    library = FakeCapture()
    with pytest.raises(ZeroDivisionError):
        count_nodes(library, 7, lambda: 1 / 0)
    assert "cudaStreamEndCapture" in library.calls


# The command


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


def test_of_a_long_message_what_cuda_says_is_kept() -> None:
    error = RuntimeError(f"Non-zero status code {'x' * 300} CUDA failure 901: not permitted ; file=a.cc")
    assert first_line(error) == "CUDA failure 901: not permitted ; file=a.cc"
    assert first_line(RuntimeError("short: CUDA failure 2\nmore")) == "short: CUDA failure 2"


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


def run_command(folder: Path, *arguments: str, **environment: str) -> tuple[Any, dict[str, Any], str]:
    """The command over a tiny checkpoint, its files in a folder: its process, results by name, output."""
    checkpoint = write_seeded_checkpoint(folder / "checkpoint", SIZES)
    path = folder / "o.json"
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_check import __main__ as command\n"
        "command.OUTPUT = Path(sys.argv[1]); sys.exit(command.main(sys.argv[2:]))"
    )
    given = ("--quick", "--checkpoint", str(checkpoint), "--json", str(path), *arguments)
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder / "files"), *given],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    results = {result["name"]: result for result in json.loads(path.read_text())["results"]}
    output = process.stdout + process.stderr
    assert process.stdout.splitlines()[-1] == f"raw values: {path}", output
    assert len(output) < 12_000
    return process, results, output


def test_command_needs_what_hgt_infer_needs_and_nothing_more(tmp_path: Path) -> None:
    """Every other package cannot be imported, in the command and in all processes that it starts."""
    finder = FINDER.format(allowed=(*ALLOWED, *ALLOWED_BY_THEM))
    (tmp_path / "sitecustomize.py").write_text(finder)
    chosen = ["smoke", "environment", "export", "placement", "logits", "graphs", "profile", "transformers"]
    process, results, output = run_command(
        tmp_path, "--device", "cpu", "--only", *chosen, PYTHONPATH=str(tmp_path)
    )
    assert process.returncode == 0, output
    passed = {name for name, result in results.items() if result["status"] == "passed"}
    assert passed >= {"smoke: generator", "environment", "export", "export verified, fp32", "placement"}
    assert passed >= {"logits of steps", "logits of prefills"}
    assert "not allowed" in results["transformers"]["says"]


def test_smoke_ends_the_command_where_a_gpu_computes_nothing(tmp_path: Path, libraries: Path) -> None:
    process, results, output = run_command(tmp_path, **stub_environment(tmp_path, libraries))
    assert process.returncode == 1, output
    assert all(name.startswith("smoke: ") for name in results)
    assert results["smoke: run"]["figure"] == "logits are not numbers"
    assert results["smoke: run"]["status"] == "failed"


def test_command_runs_over_the_real_provider(tmp_path: Path, libraries: Path) -> None:
    """The libraries compute nothing: numbers are wrong, but everything is called as on a GPU."""
    chosen = ["export", "placement", "graphs", "profile of nodes", "variants", "prompts", "seeds", "soak"]
    process, results, output = run_command(
        tmp_path, "--only", *chosen, "--budget", "1000", **stub_environment(tmp_path, libraries)
    )
    assert process.returncode == 1, output  # the logits of no model
    raised = [result for result in results.values() if "traceback" in result["values"]]
    assert raised == []
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    assert failed == ["export verified, fp16"]
    assert results["export verified, fp16"]["values"]["max_difference"] > 0.1
    assert results["placement"]["figure"].endswith(" 0 elsewhere, 0 Memcpy")
    measured_names = {name for name, result in results.items() if result["status"] == "measured"}
    assert measured_names >= {"model graph, 64", "cudnn", "cudnn: prefill", "cublas workspace"}
    assert measured_names >= {"gemm auto-tune", "operators, eager", "fed and prefilled"}


def stub_environment(folder: Path, libraries: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(libraries),
        "STUB_CUDA_LOG": str(folder / "calls.log"),
        "HGT_INFER_CACHE": str(folder / "cache"),
    }
