"""The pages of a suite's result, and what became worse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.suite_results import (
    PRECISIONS,
    ROUNDS,
    make_result,
    rows,
    texts,
)

from benchmarks.pages import report
from benchmarks.pages.blocks import Heading, Table, Text, to_html, to_markdown
from benchmarks.pages.plots import styles_of
from benchmarks.pages.report import insert_report, read_result, write_report
from benchmarks.pages.sections import (
    arrivals,
    bounds,
    figures,
    page,
    quietness,
    starts_and_agreement,
    strongest_peers,
)
from benchmarks.pages.standing import losses_sentence, telling_sides

DOCS = ROOT / "docs"


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result({1: ROUNDS, 16: ROUNDS})


@pytest.mark.parametrize(
    ("peer_seconds", "ratio", "verdict"),
    [
        ([1.2, 1.3, 1.4, 1.5, 1.6], "1.40 (1.20 – 1.60)", "ahead"),
        ([0.9, 1.1, 1.2, 1.3, 1.4], "1.20 (0.90 – 1.40)", "level"),
        ([0.9, 0.95, 0.97, 1.1, 1.2], "0.97 (0.90 – 1.20)", "level"),
        ([0.7, 0.8, 0.9, 0.95, 0.99], "0.90 (0.70 – 0.99)", "behind"),
        ([0.9, *[1.2] * 9], "1.20 (0.90 – 1.20)", "ahead"),
        ([0.9, 0.9, *[1.2] * 8], "1.20 (0.90 – 1.20)", "level"),
        ([1.2, 1.3, 1.4, 1.5], "1.35 (1.20 – 1.50)", ""),  # too few
    ],
)
def test_a_sign_test_over_paired_rounds_decides_who_is_ahead(
    peer_seconds: list[float], ratio: str, verdict: str
) -> None:
    drift = [1.0, 10.0, 2.0, 5.0, 3.0, *[1.0] * 5][: len(peer_seconds)]  # both sides of a round have it
    seconds = {
        "hgt_infer_int8": drift,
        "peer_int8": [a * b for a, b in zip(drift, peer_seconds, strict=True)],
        "transformers": [100.0] * len(drift),
    }
    (row,) = rows(strongest_peers(make_result({1: seconds}, names=seconds)))
    assert [row[0], row[2], *row[4:]] == [
        *("1 at once", "peer_int8", ratio, str(len(drift)), verdict),
    ]


def test_each_category_has_its_strongest_peer_by_case() -> None:
    first = ROUNDS | {"peer_bf16": [0.8] * 5}
    result = make_result({1: first, 16: ROUNDS})
    assert [[row[0], row[2], row[4], row[-1]] for row in rows(strongest_peers(result))] == [
        ["1 at once", "peer_bf16", "0.80 (0.80 – 0.80)", "behind"],
        ["16 at once", "peer_int8", "3.00 (3.00 – 3.00)", "ahead"],
        ["1 at once", "peer", "2.00 (2.00 – 2.00)", "ahead"],  # bf16 weights are not of fp32
        ["16 at once", "peer", "2.00 (2.00 – 2.00)", "ahead"],
    ]
    tallies = [text for text in texts(strongest_peers(result)) if "beside" in text]
    assert "any precision: ahead in 1, level in 0, behind in 1 of 2 cases." in tallies[0]
    assert "fp32 weights, products and cache: ahead in 2, level in 0, behind in 0 of 2 cases." in tallies[1]


def test_the_best_way_of_a_side_counts() -> None:
    tweets = {
        "hgt_infer_int8": [2.0],
        "hgt_infer_int8, 16 slots": [1.0],
        "peer_int8, batches of 16": [3.0],
        "peer_int8, batches of 64": [4.0],
        "transformers, batches of 64": [9.0],
    }
    row = rows(strongest_peers(make_result({}, tweets=tweets)))[0]
    assert row == [
        *("tweets", "256.0 (256.0 – 256.0)", "peer_int8, batches of 16", "85.3 (85.3 – 85.3)"),
        *("3.00 (3.00 – 3.00)", "1", ""),
    ]


def test_a_case_without_our_side_is_shown_and_not_judged() -> None:
    without = {name: ROUNDS[name] for name in ("hgt_infer_int8", "transformers", "peer")}
    result = make_result({1: ROUNDS, 256: without})
    *_, row = rows(strongest_peers(result))
    assert row == ["256 at once", "not timed", "peer", "4,096 (4,096 – 4,096)", "", "5", ""]
    assert "behind in 0 of 1 cases" in texts(strongest_peers(result))[-1]


def test_sides_of_one_category_alone_give_one_table() -> None:
    names = ["hgt_infer", "transformers"]
    result = make_result({1: {name: ROUNDS[name] for name in names}}, names=names)
    assert [row[2] for row in rows(strongest_peers(result))] == ["transformers"]
    assert losses_sentence(result) == "In no case of this run is hgt_infer behind the strongest fp32 peer."
    alone = make_result({1: {"transformers": [1.0]}}, names=["transformers"])
    assert losses_sentence(alone) == "No peer was timed beside hgt_infer."


def test_one_sentence_says_where_we_are_behind() -> None:
    wins = make_result({1: ROUNDS, 16: ROUNDS})
    assert losses_sentence(wins) == (
        "In no case of this run is hgt_infer_int8 behind the strongest peer or hgt_infer behind the "
        "strongest fp32 peer."
    )
    one = make_result({1: ROUNDS | {"peer_int8": [0.9] * 5}, 16: ROUNDS})
    assert losses_sentence(one) == "hgt_infer_int8 is behind peer_int8 at 1 at once (0.90 ×)."
    several = make_result(
        {
            1: ROUNDS | {"peer_int8": [0.9] * 5},
            16: ROUNDS | {"peer_bf16": [0.5] * 5, "peer": [1.5] * 5},
            64: ROUNDS | {"peer_int8": [0.8] * 5},
        },
        tweets=ROUNDS | {"peer_int8": [0.7] * 5},
    )
    assert losses_sentence(several) == (
        "hgt_infer_int8 is behind peer_int8 at 1 and 64 at once and with tweets (0.90 ×, 0.80 ×, 0.70 ×); "
        "hgt_infer_int8 is behind peer_bf16 at 16 at once (0.50 ×); "
        "hgt_infer is behind peer at 16 at once (0.75 ×)."
    )


def test_the_readme_s_figures_name_another_strongest_peer_in_its_cell() -> None:
    result = make_result({1: ROUNDS, 4: ROUNDS, 16: ROUNDS | {"peer_bf16": [0.5] * 5}}, tweets=ROUNDS)
    table, sentence = figures(result)
    assert isinstance(table, Table)
    assert [*table.head] == ["tokens a second (times transformers)", "1 at once", "16 at once", "tweets"]
    assert rows([table]) == [
        ["hgt_infer_int8", "64 (8.0 ×)", "1,024 (8.0 ×)", "256 (8.0 ×)"],
        ["strongest peer: peer_int8", "21 (2.7 ×)", "2,048 (16.0 ×, peer_bf16)", "85 (2.7 ×)"],
        ["hgt_infer", "32 (4.0 ×)", "512 (4.0 ×)", "128 (4.0 ×)"],
        ["strongest fp32 peer: peer", "16 (2.0 ×)", "256 (2.0 ×)", "64 (2.0 ×)"],
        ["transformers", "8", "128", "32"],
    ]
    assert sentence == Text("hgt_infer_int8 is behind peer_bf16 at 16 at once (0.50 ×).")


def test_a_run_that_was_not_quiet_says_so_first(result: dict[str, Any], tmp_path: Path) -> None:
    assert "not quiet" not in to_markdown([*page(result), *figures(result)])
    result["quiet"] = {"load": 1.5, "waited_s": 600.0, "is_quiet": False}
    warning = "This run was not quiet: do not quote it."
    title, first, *_ = page(result)
    assert isinstance(title, Heading)
    assert to_markdown([first]) == f"**{warning}**\n"
    assert f"<strong>{warning}</strong>" in to_html([first], "", tmp_path)
    assert next(figures(result)) == first
    assert "Load at the start: 1.50. The run waited 600 s, and timed out" in texts(quietness(result))[0]


def test_cases_with_disturbed_timings_are_marked(result: dict[str, Any]) -> None:
    assert "repeated because others took processor time in them: 0." in texts(quietness(result))[1]
    assert not rows(quietness(result))
    assert "*" not in to_markdown([*page(result)])
    disturbed = {"round": 1, "wall_s": 2.0, "others_s": 0.5, "steal_s": 0.0, "is_kept": False}
    result["cases"][0]["disturbed"]["peer"] = [disturbed]
    result["cases"][1]["disturbed"]["peer"] = [disturbed, disturbed, disturbed | {"is_kept": True}]
    text = texts(quietness(result))[1]
    assert "in them: 3." in text
    assert "count: 1; a * marks these cases." in text
    assert rows(quietness(result)) == [["1 at once", "peer", "1", "0"], ["16 at once*", "peer", "2", "1"]]
    assert [row[0] for row in rows(strongest_peers(result))] == ["1 at once", "16 at once*"] * 2
    result["serving"][0]["disturbed"] = [disturbed]
    result["first_token_s"]["hgt_infer"] = result["first_token_s"]["hgt_infer"] | {"disturbed": [disturbed]}
    assert [row[:2] for row in rows(quietness(result))][2:] == [
        ["arrivals, 1 a second", result["serving"][0]["backend"]],
        ["import to first token", "hgt_infer"],
    ]
    assert "| sequences at once | 1 | 16* |" in to_markdown([*page(result)])
    result["serving"][0]["disturbed"] = [disturbed | {"is_kept": True}]
    result["first_token_s"]["hgt_infer"]["disturbed"] = [disturbed | {"is_kept": True}]
    assert [row[0] for row in rows(quietness(result))][2:] == [
        "arrivals, 1 a second*",
        "import to first token*",
    ]
    assert [row[1] for row in rows(arrivals(result))][:2] == ["1*", "1"]
    assert [row[1] for row in rows(starts_and_agreement(result))][:2] == [
        "0.60 (0.50 – 0.70)*",
        "0.60 (0.50 – 0.70)",
    ]


def test_shares_of_the_bound_are_of_the_best_readings(result: dict[str, Any]) -> None:
    # 20 million weights. fp32: 80 MB at 25 GB/s are 3.2 ms a step, 16 rows at 100 GFLOP/s 6.4 ms.
    # int8: 20 MB are 0.8 ms, 16 rows at 400 GOP/s 1.6 ms. bf16 weights with fp32 products: 1.6 and 6.4 ms.
    for case in result["cases"]:
        for name in ("hgt_infer", "hgt_infer_int8", "peer_bf16"):
            case["tokens_per_s"][name] = {"median": case["batch_size"] / 0.0128}
    shares = {row[0]: row[1:] for row in rows(bounds(result)) if len(row) == 3}
    assert shares["hgt_infer"] == ["25%", "50%"]
    assert shares["hgt_infer_int8"] == ["6%", "12%"]
    assert shares["peer_bf16"] == ["13%", "50%"]
    assert ["best", "20.0", "25.0", "100", "200", "400"] in rows(bounds(result))


def test_what_each_side_can_do_is_on_the_page(result: dict[str, Any]) -> None:
    result["backends"]["peer"]["environment"] = "peers"
    lines = to_markdown([*page(result)]).splitlines()
    assert "| hgt_infer | yes | 8 of 8 | 8 of 8 | yes | yes | yes | 500 | 700 |" in lines
    assert "| peer | no | 7 of 8 | no seeds | no | no | no | the checkpoint | 700 |" in lines
    settings = "- peer: weights fp32, products fp32; 32 bits a value of the KV cache; peer 1.0; "
    assert f"{settings}environment peers; settings of peer" in lines


def test_strongest_peers_are_drawn_like_ours() -> None:
    names = ["hgt_infer", "hgt_infer_int8", "transformers", "peer", "peer_bf16", "peer_int8"]
    styles = styles_of(names, ["peer_int8", "peer"], "transformers")
    widths = {name: style["linewidth"] for name, style in styles.items()}
    assert widths["hgt_infer"] == widths["hgt_infer_int8"] == widths["peer_int8"] == widths["peer"]
    assert widths["transformers"] == widths["peer_bf16"] < widths["peer"]
    assert len({style["color"] for style in styles.values()}) == len(names)


def test_a_picture_has_the_sides_that_come_nearest_to_the_fastest() -> None:
    near = {f"near{number}": [5.0 + number] * 5 for number in range(9)}
    seconds = ROUNDS | near
    result = make_result({1: seconds, 16: ROUNDS | {"near8": [2.5] * 5}}, names=seconds)
    assert telling_sides(result, ["peer_int8", "transformers"], 8) == [
        *("hgt_infer", "hgt_infer_int8", "transformers", "peer", "peer_int8", "near0", "near1", "near8"),
    ]


def test_a_report_has_every_side_and_every_picture(tmp_path: Path) -> None:
    without = {name: ROUNDS[name] for name in ("hgt_infer", "hgt_infer_int8", "peer_int8", "transformers")}
    result = make_result({1: ROUNDS, 16: without}, tweets=ROUNDS)
    markdown, html, raw = write_report(result, tmp_path / "pages")
    text = markdown.read_text()
    assert text.index("## Beside the strongest peer") < text.index("## Tokens a second, fixed lengths")
    for name in PRECISIONS:
        assert f"\n| {name} |" in text
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        assert (tmp_path / "pages" / picture).read_bytes().startswith(b"\x89PNG")
    assert html.read_text().count("data:image/png;base64,") == 4
    assert read_result(raw) == json.loads(json.dumps(result))


def test_a_short_run_has_no_section_of_what_it_left_out(result: dict[str, Any], tmp_path: Path) -> None:
    result |= {"serving": [], "first_token_s": {}}
    markdown, *_ = write_report(result, tmp_path / "pages")
    assert "arrive by chance" not in markdown.read_text()
    assert not (tmp_path / "pages" / "first_tokens.png").exists()


def test_the_result_in_the_docs_gives_the_pages_in_the_docs(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    result = read_result(DOCS / "suite" / "result.json")
    pages = {}
    for name, mark in (("docs/benchmarks.md", "suite"), ("README.md", "figures")):
        pages[name] = (ROOT / name).read_text()
        old = f"<!-- {mark} -->\nold\n<!-- /{mark} -->"
        without = re.sub(f"<!-- {mark} -->.*<!-- /{mark} -->", old, pages[name], flags=re.DOTALL)
        assert len(without) < len(pages[name])
        (tmp_path / name).write_text(without)
    insert_report(result, tmp_path / "docs/benchmarks.md", tmp_path / "docs/suite", tmp_path / "README.md")
    for name, text in pages.items():
        assert (tmp_path / name).read_text() == text
    for link in re.findall(r"\]\((suite/.+?)\)", pages["docs/benchmarks.md"]):
        assert (tmp_path / "docs" / link).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quiet": {"load": 1.0, "waited_s": 600.0, "is_quiet": False}}, "the machine was not quiet"),
        ({"environment": {"commit": "abc+"}}, r"some files differed from commit abc\+"),
        ({"serving": []}, "a quick or unfinished run"),
        ({"bounds": [{"when": "before"}]}, "a quick or unfinished run"),
        ({"absent": ["vllm", "optimum"]}, "backends that are not in this run: vllm, optimum"),
    ],
)
def test_what_is_not_to_be_quoted_is_not_put_into_the_docs(
    change: dict[str, Any], message: str, result: dict[str, Any], tmp_path: Path
) -> None:
    page, readme = tmp_path / "page.md", tmp_path / "README.md"
    for file, mark in ((page, "suite"), (readme, "figures")):
        file.write_text(f"<!-- {mark} -->\nold\n<!-- /{mark} -->\n")
    with pytest.raises(ValueError, match=message):
        insert_report(result | change, page, tmp_path / "pictures", readme)
    assert "old" in page.read_text()
    assert not (tmp_path / "pictures").exists()


def test_a_report_goes_between_the_marks(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_write_pictures", lambda *_: [Heading("a", 1), Heading("b"), Text("c")])
    body, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    body.write_text("before\n<!-- suite -->\nold\n<!-- /suite -->\nafter\n")
    readme.write_text("<!-- figures -->\n<!-- /figures -->\n")
    insert_report(result, body, tmp_path / "suite", readme)
    assert body.read_text() == (
        "before\n<!-- suite -->\n## b\n\nc\n\n[Raw values](suite/result.json).\n<!-- /suite -->\nafter\n"
    )
    assert "| hgt_infer_int8 | 64 (8.0 ×) |" in readme.read_text()
    readme.write_text("")
    with pytest.raises(ValueError, match=r"README\.md has no marks <!-- figures -->"):
        insert_report(result, body, tmp_path / "suite", readme)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["quiet"], 'it has no "quiet"'),
        (["backends", "peer", "company"], 'backend peer has no "company"'),
        (["cases", 1, "disturbed"], 'case 1 has no "disturbed"'),
    ],
)
def test_a_key_that_a_result_lacks_is_named(
    result: dict[str, Any], tmp_path: Path, path: list[Any], message: str
) -> None:
    part: Any = result
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=rf"result.json is no result of .*: {message}"):
        read_result(file)
