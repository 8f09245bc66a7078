"""The suite of benchmarks on a tiny model: every case, the gate, the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import suite, throughput, tuning
from benchmarks.cases.suite import Plan, check, in_company, run
from benchmarks.cases.throughput import REFERENCE
from benchmarks.cases.tuning import Trial
from benchmarks.measure import bounds
from benchmarks.measure.checkpoints import gpt2_small, write_model
from benchmarks.measure.comparison import Spread
from benchmarks.measure.workloads import (
    TokenIds,
    Workload,
    arrivals,
    one_prompt,
    random_prompts,
    tweets,
)
from benchmarks.pages.report import read_result
from benchmarks.pages.trials import trials_table
from benchmarks.peers import environments
from benchmarks.peers.registry import BACKENDS, Entry
from benchmarks.peers.worker import Remote, WorkerError

CONFIG = gpt2_small()
NAMES = ["hgt_infer", "hgt_infer_int8", "transformers"]
APART = "transformers_pipeline"
PLAN = Plan(
    rounds={1: 1, 4: 2},
    num_tweets=6,
    num_samples=3,
    num_offline=20,
    rounds_of_others=1,
    num_starts=1,
    rates=(32.0,),
    has_long_prompts=True,
)
QUIET = {"load": 0.1, "waited_s": 0.0, "is_quiet": True}


@pytest.mark.integration
def test_every_case_and_every_page_has_every_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "LONG_PROMPT", 200)
    monkeypatch.setattr(suite, "num_physical_cores", lambda: 1)
    for name, value in (("READ_MB", 16), ("GEMM_SIZE", 256), ("SECONDS", 0.01)):
        monkeypatch.setattr(bounds, name, value)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # torch's threads do not spin against others
    kept: list[dict[str, Any]] = []
    result = run([*NAMES, APART], PLAN, tmp_path, config=CONFIG, wait=lambda: QUIET, keep=kept.append)
    assert kept[-1] == result
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
        ("offline", None),
    ]
    assert list(cases["fixed", 4]["seconds"]) == NAMES
    assert {len(seconds) for seconds in cases["fixed", 4]["seconds"].values()} == {2}
    assert list(cases["tweets", None]["seconds"]) == [
        *("hgt_infer", "hgt_infer_int8", "transformers, batches of 64"),
    ]
    assert set(cases["offline", None]["seconds"]) <= {"hgt_infer", "hgt_infer_int8"}
    assert cases["offline", None]["num_tokens"] == sum(tweets().lengths[:20])
    assert [case["batch_size"] for case in result["apart"]] == [1, 4]
    for case in (*cases.values(), *result["apart"]):
        assert case["ratio"][case["compared_with"]]["median"] == 1
        for name, seconds in case["seconds"].items():
            assert case["tokens_per_s"][name] == vars(
                Spread.of([case["num_tokens"] / value for value in seconds])
            )
    for case in result["apart"]:
        assert list(case["seconds"]) == [*NAMES, APART]
    assert {entry["backend"] for entry in result["serving"]} == set(NAMES)
    assert set(result["first_token_s"]) == set(result["backends"]) == {*NAMES, APART}
    assert result["quiet"] == QUIET
    assert [reading["when"] for reading in result["bounds"]] == ["before", "between", "after"]
    for name in ("hgt_infer", "hgt_infer_int8"):
        assert result["backends"][name]["company"] == {"greedy": [8, 8], "sampled": [8, 8]}
        assert result["backends"][name]["is_torch_free"]
        assert result["backends"][name]["can"] == {"seeds": True, "refills": True, "lengths": True}
    assert result["backends"]["transformers"]["company"]["sampled"] is None
    assert not result["backends"]["transformers"]["is_torch_free"]
    assert "torch" in result["backends"]["transformers"]["versions"]
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
    for name in (*NAMES, APART):
        assert len(re.findall(rf"^\| {name} \|", page, re.MULTILINE)) >= 4
    for picture in re.findall(r"!\[.+\]\((.+)\)", page):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "http" not in html
    assert read_result(folder / "result.json") == result


class Side:
    """Gives tokens by their rank among the reference's, whose logits are 0, -1, -2 and so on."""

    def __init__(self, rank: int, sampled_rank: int = 0, num_missing: int = 0) -> None:
        self.ranks = {True: rank, False: sampled_rank}
        self.num_missing = num_missing

    def generate(self, workload: Workload, *, greedy: bool, batch_size: int | None) -> TokenIds:
        return [(self.ranks[greedy],) * (length - self.num_missing) for length in workload.lengths]

    def margins(self, prompt: tuple[int, ...], token_ids: tuple[int, ...], *, top_k: int) -> list[float]:
        return [max(0.0, rank - (top_k - 1)) for rank in token_ids]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Side(1), r"hgt_infer agrees with transformers in 0\.0% of the tokens, not 100%"),
        (Side(0, 50), r"samples, 0\.0% are among the top_k of transformers, not 100%"),
        (Side(0, 0), r"samples, 100\.0% are the choice of transformers, not 50% at most"),
        (Side(0, 49, num_missing=1), "hgt_infer gave 479 tokens, not 499"),
    ],
)
def test_a_backend_that_chooses_other_tokens_is_refused(wrong: Any, message: str) -> None:
    reference: Any = Side(0, 49)
    assert check({"transformers": reference, "hgt_infer": reference})["hgt_infer"] == {
        "share": 1.0,
        "largest_margin": 0.0,
    }
    with pytest.raises(ValueError, match=message):
        check({"transformers": reference, "hgt_infer": wrong})


@pytest.mark.integration
def test_a_backend_that_fails_is_named_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"hgt_infer: its process ended: .*ModelNotFoundError"):
        Remote("hgt_infer", tmp_path / "none", tmp_path)
    side = Remote("hgt_infer", write_model(tmp_path, CONFIG), tmp_path)
    with pytest.raises(WorkerError, match=r"hgt_infer: .*temperature"):
        side.generate(replace(one_prompt(1, num_new_tokens=1), temperature=-1.0))
    assert len(side.generate(one_prompt(2, num_new_tokens=3))) == 2  # it lives on
    side.close()


@contextmanager
def sides_or_skip(folder: Path, *names: str) -> Iterator[dict[str, Remote]]:
    if missing := [name for name in names if not BACKENDS[name].is_installed]:
        pytest.skip(f"make peers has not made the environment of {', '.join(missing)}")
    checkpoint = write_model(folder, CONFIG)
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(closing(Remote(name, checkpoint, folder / name)))
            for name in (REFERENCE, *names)
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exact", "other"),
    [("llama_cpp", "llama_cpp_q8_0"), ("openvino_f32", "openvino_int8")],
)
def test_peers_that_refill_choose_the_reference_s_tokens(tmp_path: Path, exact: str, other: str) -> None:
    with sides_or_skip(tmp_path, exact, other) as sides:
        agreement = check(sides)
        assert agreement[exact]["share"] == 1
        assert agreement[other]["share"] > 0.5
        side = sides[exact]
        requests = tweets().part(0, 70)
        assert [*map(len, side.generate(requests))] == [*requests.lengths]  # more than run at once
        assert len(set(side.generate(one_prompt(3, num_new_tokens=20)))) == 3
        company = in_company(side, has_seeds=True)
        assert company["greedy"] == (8, 8)
        if exact.startswith("openvino"):
            few = requests.part(0, 5)
            served = side.serve(few, arrivals(few, rate=100.0), batch_size=64)
            assert all(0 < times.first_token_s <= times.end_s for times in served)


@pytest.mark.slow
def test_generate_batch_chooses_the_reference_s_tokens(tmp_path: Path) -> None:
    with sides_or_skip(tmp_path, "transformers_generate_batch") as sides:
        assert check(sides)["transformers_generate_batch"]["share"] == 1
        side = sides["transformers_generate_batch"]
        assert [*map(len, side.generate(tweets().part(0, 20)))] == [*tweets().lengths[:20]]
        assert len(set(side.generate(one_prompt(3, num_new_tokens=20)))) == 3


class Company:
    """Gives a prompt's first token and its seed; the prompts of some numbers differ in company."""

    def __init__(self, different: Sequence[int], different_greedy: Sequence[int]) -> None:
        self.different = {True: different_greedy, False: different}
        self.prompts = random_prompts(8).prompts

    def generate(self, workload: Workload, *, greedy: bool, seeds: Sequence[int] | None) -> TokenIds:
        assert greedy == (seeds is None)
        is_alone = len(workload.prompts) == 1
        return [
            (ids[0], seed, int(is_alone and self.prompts.index(prompt) in self.different[greedy]))
            for prompt, ids, seed in zip(
                workload.prompts, workload.prompt_token_ids, seeds or [0] * len(workload.prompts), strict=True
            )
        ]


def test_tokens_alone_are_compared_with_those_in_company() -> None:
    assert in_company(Company([1, 5, 6], [2]), has_seeds=True) == {"greedy": (7, 8), "sampled": (5, 8)}
    assert in_company(Company([], []), has_seeds=False) == {"greedy": (8, 8), "sampled": None}


def test_who_is_far_behind_is_left_out_of_larger_cases() -> None:
    rates = {
        "hgt_infer_int8": 100.0,
        "openvino_int8": 25.0,
        "llama_cpp_q8_0": 24.0,
        "hgt_infer": 16.0,
        "llama_cpp": 4.0,
        "transformers, batches of 64": 3.0,
    }
    case = {"tokens_per_s": {way: {"median": rate} for way, rate in rates.items()}}
    names = [*(way.split(",")[0] for way in rates), "optimum"]
    near = ["hgt_infer_int8", "openvino_int8", "hgt_infer", "llama_cpp", "transformers"]
    assert throughput.fast_enough(case, names) == near


def test_settings_are_tried_in_turns_and_what_does_not_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [Trial(), Trial({"num_threads": 1}, {"OMP_WAIT_POLICY": "passive"}), Trial({"no_such": 1})]
    monkeypatch.setitem(tuning.TRIED, REFERENCE, trials)
    for name, value in (("BATCH_SIZES", (1, 2)), ("NUM_TWEETS", 3), ("LONG_PROMPT", 50)):
        monkeypatch.setattr(tuning, name, value)
    result = tuning.tune([REFERENCE], tmp_path, num_rounds=2, config=CONFIG, wait=lambda: QUIET)
    assert result["quiet"] == QUIET
    tried = result["tried"][REFERENCE]
    cases = ["1", "2", "tweets", "50 tokens"]
    assert list(tried) == ["as in the suite", "num_threads=1, OMP_WAIT_POLICY=passive", "no_such=1"]
    assert [*tried["as in the suite"]] == [*tried["num_threads=1, OMP_WAIT_POLICY=passive"]] == cases
    assert tried["as in the suite"]["2"]["median"] > 0
    assert "no_such" in tried["no_such=1"]["error"]
    table = trials_table(result)
    assert [*table.head] == ["", "", *cases, ""]
    assert [row[:2] for row in table.rows] == [[REFERENCE, trial] for trial in tried]
    assert "no_such" in table.rows[-1][-1]


def test_backends_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--backends", "hgt_infer"]) == 2
    assert "--backends needs transformers" in capsys.readouterr().err
    assert main(["run", "--backends", "gpt5"]) == 2
    assert "got gpt5" in capsys.readouterr().err


def test_a_peer_is_installed_where_its_environment_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "PEERS", tmp_path)
    assert not BACKENDS["openvino_int8"].is_installed
    assert main(["run", "--backends", "transformers", "openvino_int8"]) == 2
    assert "not installed (`make peers` makes their environments): openvino_int8" in capsys.readouterr().err
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "installed").touch()
    assert BACKENDS["openvino_int8"].is_installed
    assert not Entry(make=dict, packages=["no_such_package"]).is_installed
