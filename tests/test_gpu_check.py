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

from benchmarks import environment
from benchmarks.gpu_check import __main__
from benchmarks.gpu_check.figures import (
    agreement,
    chi_squared,
    chi_squared_p,
    compare_logits,
    step_bytes,
)
from benchmarks.gpu_check.placement import parse
from benchmarks.gpu_check.report import WIDTH, Report, Result, Skipped, Step, measured

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
    num_bytes = step_bytes(247_000_000, 36_864, [100] * 64, 50_257)
    assert num_bytes == 247_000_000 + 36_864 * 6_400 + 4 * 50_257 * 64
    assert num_bytes / 4.3e12 == pytest.approx(115e-6, rel=0.02)


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


def test_a_step_that_raises_loses_no_other(tmp_path: Path) -> None:
    report = quiet_report(tmp_path / "new" / "o.json")
    chosen = [
        Step("broken", broken),
        Step("others' code", broken, is_optional=True),
        Step("impossible", impossible),
        Step("in the middle", breaks_off),
        Step("fine", lambda _: Result("fine", "passed", values={"x": np.float32(2), "y": np.arange(2)})),
    ]
    report.run(chosen, None)
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
    kept = json.loads((tmp_path / "new" / "o.json").read_text())
    assert kept["environment"] == {"cpu": "a"}
    assert kept["results"][-1]["values"] == {"x": 2.0, "y": [0, 1]}
    assert "no such kernel" in kept["results"][0]["values"]["traceback"]
    assert set(kept["step_seconds"]) == {step.name for step in chosen}


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


def test_table_fits_and_shows_everything() -> None:
    report = quiet_report()
    report.results = [
        Result("logits of steps, prefills and more", "passed", "max 0.031", "word " * 40),
        Result("x", "failed", "y" * 90, ""),
        Result("empty", "skipped"),
    ]
    lines = report.table().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].split() == ["passed", "logits", "of", "steps,", "max", "0.031"]
    text = "\n".join(lines)
    assert text.count("word") == 40
    assert text.count("y") >= 90
    assert lines[-1].startswith("1 passed, 1 failed, 1 skipped in ")


# The command


def test_without_a_gpu_it_says_so_in_one_line_and_exits_2() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--quick"],
        cwd=Path(__file__).parents[1],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    [line] = process.stderr.splitlines()
    assert line.startswith("error: device 'cuda:0' was asked for, but ")


def test_command_exits_1_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "be_quiet", lambda: None)
    monkeypatch.setattr("benchmarks.gpu_check.subject.prepare", lambda *_: None)
    monkeypatch.setattr(
        "benchmarks.gpu_check.steps.steps", lambda *_, **__: [Step("a", broken), Step("b", impossible)]
    )
    arguments = ["--device", "cpu", "--json", str(tmp_path / "o.json")]
    assert __main__.main(arguments) == 1
    assert "failed    a  " in capsys.readouterr().out
    assert __main__.main([*arguments, "--only", "b"]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["has_failed"] is False
