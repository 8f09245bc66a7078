"""What became worse from one result of the suite to another."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.suite_results import ROUNDS, Timings, make_result, rows, texts

from benchmarks.__main__ import main
from benchmarks.measure.comparison import Spread
from benchmarks.pages.blocks import Items
from benchmarks.pages.regressions import compare_results


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result({1: ROUNDS, 16: ROUNDS})


def changed(old: Timings, new: Timings) -> tuple[dict[str, str], bool]:
    """The change in tokens a second of each way from one result to the other, and the verdict."""
    references = [{"transformers": [9.0] * len(next(iter(timings.values())))} for timings in (old, new)]
    results = [make_result({1: {**a, **b}}) for a, b in zip((old, new), references, strict=True)]
    blocks, is_good = compare_results(*results)
    return {row[1]: row[-1] for row in rows(blocks) if row[0] == "1 at once (tokens a second)"}, is_good


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        # tokens a second of three rounds: half of the quartiles' distance is 4 in both
        ([92, 100, 108], [83, 91, 99], "worse"),
        ([92, 100, 108], [85, 93, 101], "same"),
        ([92, 100, 108], [101, 109, 117], "better"),
        # without noise the floor of 3 % is left
        ([100, 100, 100], [96.9, 96.9, 96.9], "worse"),
        ([100, 100, 100], [97.1, 97.1, 97.1], "same"),
        # the whole range of two rounds: 6 and 6
        ([97, 103], [84, 90], "worse"),
        ([97, 103], [86, 92], "same"),
        # one round: a tenth of 100 and of what it is now
        ([100], [81], "worse"),
        ([100], [83], "same"),
    ],
)
def test_a_change_is_one_beyond_the_noise_of_both(old: list[float], new: list[float], change: str) -> None:
    timings = [{"hgt_infer": [64 / rate for rate in rates]} for rates in (old, new)]
    changes, is_good = changed(*timings)
    assert changes["hgt_infer"] == change
    assert is_good == (change != "worse")


def test_peers_are_shown_and_do_not_decide() -> None:
    fast, slow = {"hgt_infer": [1.0], "peer": [1.0]}, {"hgt_infer": [1.0], "peer": [5.0]}
    changes, is_good = changed(fast, slow)
    assert changes == {"hgt_infer": "same", "peer": "(worse)", "transformers": "(same)"}
    assert is_good


@pytest.mark.parametrize(
    ("resident", "first_s", "is_good"), [(734, 0.6, True), (736, 0.6, False), (700, 0.8, False)]
)
def test_memory_and_cold_start_count(
    result: dict[str, Any], resident: float, first_s: float, is_good: bool
) -> None:
    new = copy.deepcopy(result)
    new["backends"]["hgt_infer"]["memory_mb"]["resident"] = resident  # 700
    new["backends"]["peer"]["memory_mb"]["peak"] *= 9
    starts = [first_s - 0.1, first_s, first_s + 0.1]  # 0.6 and half of the quartiles' distance 0.05
    new["first_token_s"]["hgt_infer_int8"] = vars(Spread.of(starts)) | {"rounds": starts}
    assert compare_results(result, new)[1] == is_good


def test_what_makes_results_incomparable_is_a_warning(result: dict[str, Any]) -> None:
    same, is_good = compare_results(result, result)
    assert is_good
    assert not [block for block in same if isinstance(block, Items)]
    new = copy.deepcopy(result)
    new["environment"]["cpu"] = "another CPU"
    new["environment"]["versions"] = {"torch": "2.1"}
    new["backends"]["peer"]["versions"] = {"peer": "2.0"}
    new["quiet"]["is_quiet"] = False
    del new["cases"][1]["tokens_per_s"]["hgt_infer"]
    blocks, is_good = compare_results(result, new)
    assert is_good
    assert [block.texts for block in blocks if isinstance(block, Items)] == [
        [
            "warning: cpu was a CPU and is another CPU",
            "warning: numpy was 2.0 and is missing",
            "warning: torch was missing and is 2.1",
            "warning: peer: peer was 1.0 and is 2.0",
            "warning: the new run was not quiet",
            "warning: in one of the results alone: hgt_infer: 16 at once (tokens a second)",
        ]
    ]
    # 3 of tokens a second, 4 of memory and 2 cold starts; 6 and 8 of peers
    assert texts(blocks) == [
        "9 comparisons of hgt_infer's sides, 0 of them worse; 14 of peers, in brackets, which do not count."
    ]


def test_results_without_a_side_of_ours_in_common_are_an_error(result: dict[str, Any]) -> None:
    without = make_result({1: {"transformers": [1.0]}}, names=["transformers"])
    with pytest.raises(ValueError, match="nothing of hgt_infer's sides in common"):
        compare_results(result, without)


def test_the_command_fails_where_something_became_worse(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = copy.deepcopy(result)
    for key in slow["cases"][0]["tokens_per_s"]["hgt_infer"]:
        slow["cases"][0]["tokens_per_s"]["hgt_infer"][key] *= 0.1
    paths = []
    for name, values in (("old", result), ("new", slow)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(values))
    assert main(["compare", *paths]) == 1
    assert "something became worse" in capsys.readouterr().out
    assert main(["compare", paths[0], paths[0]]) == 0
    (tmp_path / "none.json").write_text("[]")
    assert main(["compare", paths[0], str(tmp_path / "none.json")]) == 2
    assert "none.json is no result of" in capsys.readouterr().err
