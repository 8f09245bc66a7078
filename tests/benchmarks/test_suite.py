"""The suite of benchmarks on a tiny model: every case, the gate, the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import suite, throughput
from benchmarks.cases.suite import Plan, check, run
from benchmarks.measure import bounds
from benchmarks.measure.checkpoints import gpt2_small, write_model
from benchmarks.measure.comparison import Spread
from benchmarks.measure.fresh_processes import in_fresh_processes
from benchmarks.measure.workloads import (
    TokenIds,
    Workload,
    one_prompt,
    tweets,
)
from benchmarks.pages.report import read_result
from benchmarks.peers.registry import Entry
from benchmarks.peers.worker import Remote, WorkerError

CONFIG = gpt2_small()
NAMES = ["hgt_infer", "hgt_infer_int8", "transformers"]
PLAN = Plan(rounds={1: 1, 4: 2}, num_tweets=6, num_samples=3, rounds_of_others=1, num_starts=1)


@pytest.mark.integration
def test_every_case_and_every_page_has_every_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "SERVED_RATES", (32.0,))
    monkeypatch.setattr(throughput, "LONG_PROMPT", 200)
    monkeypatch.setattr(suite, "in_fresh_processes", partial(in_fresh_processes, num_warmups=0))
    monkeypatch.setattr(suite, "num_physical_cores", lambda: 1)
    for name, value in (("READ_MB", 16), ("GEMM_SIZE", 256), ("SECONDS", 0.01)):
        monkeypatch.setattr(bounds, name, value)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # torch's threads do not spin against others
    result = run(NAMES, PLAN, tmp_path, config=CONFIG)
    result = json.loads(json.dumps(result))  # what a file gives back
    check_cases(result)
    capsys.readouterr()
    check_pages(result, tmp_path, capsys)


def check_cases(result: dict[str, Any]) -> None:
    cases = {(case["case"], case.get("batch_size")): case for case in result["cases"]}
    assert list(cases) == [
        ("fixed", 1),
        ("fixed", 4),
        ("samples", None),
        ("long_prompt", None),
        ("tweets", None),
    ]
    assert list(cases["fixed", 4]["seconds"]) == NAMES
    assert {len(seconds) for seconds in cases["fixed", 4]["seconds"].values()} == {2}
    assert list(cases["tweets", None]["seconds"]) == [
        *("hgt_infer", "hgt_infer, 16 slots", "hgt_infer_int8", "hgt_infer_int8, 16 slots"),
        *("transformers, batches of 16", "transformers, batches of 64"),
    ]
    for case in cases.values():
        assert case["ratio"][case["compared_with"]]["median"] == 1
        for name, seconds in case["seconds"].items():
            assert case["tokens_per_s"][name] == vars(
                Spread.of([case["num_tokens"] / value for value in seconds])
            )
    assert {entry["backend"] for entry in result["serving"]} == set(NAMES)
    assert set(result["first_token_s"]) == set(NAMES)
    assert result["agreement"]["hgt_infer"]["share"] == 1
    assert 0.5 < result["agreement"]["hgt_infer_int8"]["share"] <= 1
    assert all(backend["memory_mb"]["resident"] > 10 for backend in result["backends"].values())


def check_pages(result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each backend, and nothing else is needed to show them."""
    (tmp_path / "kept.json").write_text(json.dumps(result))
    folder = tmp_path / "new" / "pages"
    assert main(["report", str(tmp_path / "kept.json"), "--out", str(folder)]) == 0
    written = [str(folder / name) for name in ("report.md", "report.html", "result.json")]
    assert capsys.readouterr().out.splitlines() == written
    page = (folder / "report.md").read_text()
    for name in NAMES:
        assert len(re.findall(rf"^\| {name} \|", page, re.MULTILINE)) >= 5
    for picture in re.findall(r"!\[.+\]\((.+)\)", page):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "http" not in html
    assert read_result(folder / "result.json") == result


class Side:
    """Gives tokens, all of which lie so far below the reference's choice."""

    def __init__(self, margin: float, num_missing: int = 0) -> None:
        self.margin, self.num_missing = margin, num_missing

    def generate(self, workload: Workload, *, greedy: bool, batch_size: int | None) -> TokenIds:
        assert greedy
        return [(int(1000 * self.margin),) * (length - self.num_missing) for length in workload.lengths]

    def margins(self, prompt: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        return [id_ / 1000 for id_ in token_ids]


def test_a_backend_that_chooses_other_tokens_is_refused() -> None:
    reference: Any = Side(0.0)
    assert check({"transformers": reference, "hgt_infer": reference})["hgt_infer"] == {
        "share": 1.0,
        "largest_margin": 0.0,
    }
    for wrong in (Side(0.5), Side(0.0, num_missing=1)):
        with pytest.raises(ValueError, match="hgt_infer agrees with transformers in "):
            check({"transformers": reference, "hgt_infer": wrong})  # type: ignore[dict-item]


@pytest.mark.integration
def test_a_backend_that_fails_is_named_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"hgt_infer: its process ended: .*ModelNotFoundError"):
        Remote("hgt_infer", tmp_path / "none", tmp_path)
    side = Remote("hgt_infer", write_model(tmp_path, CONFIG), tmp_path)
    with pytest.raises(WorkerError, match=r"hgt_infer: .*temperature"):
        side.generate(replace(one_prompt(1, num_new_tokens=1), temperature=-1.0))
    assert len(side.generate(one_prompt(2, num_new_tokens=3))) == 2  # it lives on
    side.close()


def test_llama_cpp_chooses_the_reference_s_tokens(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    checkpoint = write_model(tmp_path, CONFIG)
    names = ["transformers", "llama_cpp", "llama_cpp_q8_0"]
    sides = {name: Remote(name, checkpoint, tmp_path / name) for name in names}
    try:
        agreement = check(sides)
        lengths = [*map(len, sides["llama_cpp"].generate(tweets().part(0, 70)))]
        samples = sides["llama_cpp"].generate(one_prompt(3, num_new_tokens=20))
    finally:
        for side in sides.values():
            side.close()
    assert agreement["llama_cpp"]["share"] == 1
    assert agreement["llama_cpp_q8_0"]["share"] > 0.5
    assert lengths == [*tweets().lengths[:70]]  # more than run at once
    assert len(set(samples)) == 3


def test_backends_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--backends", "hgt_infer"]) == 2
    assert "transformers among them; got hgt_infer" in capsys.readouterr().err
    assert not Entry(lambda *_: None, ["no_such_package"], "fp32").is_installed
