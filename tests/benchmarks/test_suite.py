"""The suite of benchmarks on a tiny model: every step, the gate, the pages, and what became slower."""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import suite
from benchmarks.cases.offline import run_offline
from benchmarks.cases.quality import measure_quality
from benchmarks.cases.service import run_service
from benchmarks.cases.suite import Plan, check, run
from benchmarks.measure.arrivals import serve
from benchmarks.measure.bounds import measure_bounds
from benchmarks.measure.comparison import Spread
from benchmarks.measure.workloads import (
    MixedWorkload,
    Workload,
    arrivals,
    gpt2_small,
    long_prompt,
    one_prompt,
    tweets,
    write_checkpoint,
)
from benchmarks.pages.report import compare_results, insert_report, read_result, write_report
from benchmarks.peers.backends import TokenIds
from benchmarks.peers.registry import Entry
from benchmarks.peers.worker import Remote, WorkerError

CONFIG = gpt2_small()
NAMES = ["hgt_infer", "hgt_infer_int8", "transformers"]
PLAN = Plan(rounds={1: 2, 4: 2}, num_tweets=6, num_samples=3, rounds_of_others=1, num_starts=1)
REQUESTS = MixedWorkload(
    prompts=("a", "b", "c", "d"), prompt_token_ids=((0,), (1,), (2,), (3,)), lengths=(1, 2, 3, 4)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SERVED_RATES", (32.0,))
        result = run(NAMES, PLAN, folder, config=CONFIG)
    kept: dict[str, Any] = json.loads(json.dumps(result))  # what a file gives back
    return kept


def test_every_case_has_every_backend_and_its_rounds(result: dict[str, Any]) -> None:
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


def test_the_report_has_a_row_for_each_backend_and_needs_nothing_else(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path / "kept.json"), "--out", str(tmp_path / "pages")]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    page = (tmp_path / "pages" / "report.md").read_text()
    for name in NAMES:
        assert len(re.findall(rf"^\| {name} \|", page, re.MULTILINE)) >= 5
    for picture in re.findall(r"!\[.+\]\((.+)\)", page):
        assert (tmp_path / "pages" / picture).read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "pages" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "http" not in html
    assert read_result(tmp_path / "pages" / "result.json") == result


def test_the_report_goes_into_the_docs_between_marks(result: dict[str, Any], tmp_path: Path) -> None:
    docs, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    docs.write_text("before\n<!-- suite -->\nold\n<!-- /suite -->\nafter\n")
    readme.write_text("<!-- figures -->\n<!-- /figures -->\n")
    for _ in range(2):  # as often as one likes
        insert_report(result, docs, tmp_path / "suite", readme)
    page = docs.read_text()
    assert page.startswith("before\n<!-- suite -->\n")
    assert page.endswith("<!-- /suite -->\nafter\n")
    assert "\nold\n" not in page
    for link in re.findall(r"\]\((.+?)\)", page):
        assert (tmp_path / link).is_file()
    assert re.search(r"^\| hgt_infer_int8 \| [\d,]+ \([\d.]+ ×\) \|", readme.read_text(), re.MULTILINE)
    readme.write_text("")
    with pytest.raises(ValueError, match=r"README\.md has no marks <!-- figures -->"):
        insert_report(result, docs, tmp_path / "suite", readme)


def test_what_became_slower_is_told(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = copy.deepcopy(result)
    for key in slow["cases"][0]["tokens_per_s"]["hgt_infer"]:
        slow["cases"][0]["tokens_per_s"]["hgt_infer"][key] *= 0.1
    table, is_good = compare_results(result, slow)
    assert not is_good
    assert [row[:2] for row in table.rows if row[-1] == "slower"] == [["fixed 1", "hgt_infer"]]
    assert compare_results(result, result)[1]
    paths = []
    for name, values in (("old", result), ("new", slow)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(values))
    assert main(["compare", *paths]) == 1
    assert "something became slower" in capsys.readouterr().out
    assert main(["compare", paths[0], paths[0]]) == 0
    (tmp_path / "none.json").write_text("[]")
    assert main(["compare", paths[0], str(tmp_path / "none.json")]) == 2
    assert "none.json is no result of" in capsys.readouterr().err


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


def test_a_backend_that_fails_is_named_with_what_it_printed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"hgt_infer: its process ended: .*ModelNotFoundError"):
        Remote("hgt_infer", tmp_path / "none", tmp_path)
    side = Remote("transformers", folder / "small", tmp_path)
    with pytest.raises(WorkerError, match="transformers: "):
        side.generate(replace(one_prompt(1, num_new_tokens=1), temperature=-1.0))
    assert len(side.generate(one_prompt(2, num_new_tokens=3))) == 2  # it lives on
    side.close()


def test_llama_cpp_chooses_the_reference_s_tokens(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    checkpoint = write_checkpoint(folder / "small", CONFIG)
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


def test_many_prompts_go_through_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_offline("hgt_infer_int8", 300, tmp_path, config=CONFIG)
    assert result["num_tokens"] == tweets().num_tokens + sum(tweets().lengths[:44])
    assert result["tokens_per_s"] == result["num_tokens"] / result["seconds"]
    assert all(memory["resident"] > 10 for memory in result["memory_mb"].values())
    assert main(["offline", "--backend", "transformers"]) == 2
    assert "transformers is not installed here, or takes no requests" in capsys.readouterr().err
    assert main(["offline", "--prompts", "0"]) == 2


def test_the_service_is_measured_beside_the_library_and_abused(tmp_path: Path) -> None:
    result = run_service(
        tmp_path, name="hgt_infer_int8", num_rounds=1, abuse_s=0.5, num_abusers=50, config=CONFIG
    )
    assert set(result["overhead"]) == {"library", "service", "service, streams"}
    assert all(side["tokens_per_s"] > 0 for side in result["overhead"].values())
    for load in result["loads"].values():
        assert load["num_requests"] == len(tweets().prompts)
        assert 0 < load["first_token_s"]["p50"] <= load["end_s"]["p99"]
    abused = result["abuse"]
    assert abused["good"] > 0
    assert abused["bad"] > 0
    assert abused["wrong"] == 0
    assert abused["is_same_text_after"]
    assert abused["after"]["num_files"] == abused["before"]["num_files"]


def test_backends_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--backends", "hgt_infer"]) == 2
    assert "transformers among them; got hgt_infer" in capsys.readouterr().err
    assert not Entry(lambda *_: None, ["no_such_package"], "fp32").is_installed


def test_arrivals_are_the_same_traffic_at_any_rate() -> None:
    workload = tweets()
    slow, fast = arrivals(workload, rate=2.0), arrivals(workload, rate=4.0)
    assert slow == pytest.approx([2 * at for at in fast])
    assert list(slow) == sorted(slow)
    assert len(slow) / slow[-1] == pytest.approx(2.0, rel=0.2)
    assert len(long_prompt(900, 1).prompt_token_ids[0]) == 900
    assert long_prompt(900, 1) == long_prompt(900, 1) != long_prompt(900, 2)
    assert one_prompt(7, num_new_tokens=3).num_tokens == 21


class Batches:
    """Takes 50 ms for a batch of whatever size."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def generate_padded(self, batch: MixedWorkload) -> None:
        self.sizes.append(len(batch.prompts))
        time.sleep(0.05)


def test_static_batches_take_all_that_wait_and_show_nothing_before_they_end() -> None:
    backend = Batches()
    served = serve(backend, REQUESTS, (0.0, 0.01, 0.02, 0.03), batch_size=2)
    assert backend.sizes == [1, 2, 1]
    assert all(times.first_token_s == times.end_s >= 0.05 for times in served)
    assert served[3].end_s >= 0.12  # it arrived in the first batch's time and waited for two


def test_bounds_are_measured() -> None:
    bounds = measure_bounds(1)
    assert bounds["read_gb_s"] > 0.1
    assert bounds["fp32_gflop_s"] > 0.1


def test_quality_is_that_of_the_same_tokens(checkpoint: Path) -> None:
    quality = measure_quality(checkpoint, ["My dream is to sleep", "a b c"])
    assert quality["num_tokens"] == pytest.approx(20, abs=12)
    assert quality["int8"]["perplexity"] == pytest.approx(quality["fp32"]["perplexity"], rel=0.2)
    assert quality["fp16"]["perplexity"] == pytest.approx(quality["fp32"]["perplexity"], rel=0.01)
    assert 0 <= quality["fp16"]["kl"] < quality["int8"]["kl"]
    assert 0 < quality["int8"]["kl"] < 0.1
    assert 0.5 < quality["int8"]["top1"] <= 1


def test_the_report_is_written_where_it_was_asked_for(result: dict[str, Any], tmp_path: Path) -> None:
    assert [path.name for path in write_report(result, tmp_path / "a" / "b")] == [
        *("report.md", "report.html", "result.json")
    ]
