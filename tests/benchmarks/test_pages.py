"""The pages of a suite's result, and what became slower."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from benchmarks.__main__ import main
from benchmarks.pages import report
from benchmarks.pages.blocks import Heading
from benchmarks.pages.report import compare_results, insert_report, read_result

DOCS = ROOT / "docs"


@pytest.fixture
def result() -> dict[str, Any]:
    """The suite's result that the docs show."""
    return dict(read_result(DOCS / "suite" / "result.json"))


def test_the_result_in_the_docs_gives_the_pages_in_the_docs(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pages = {}
    for name, mark in (("docs/benchmarks.md", "suite"), ("README.md", "figures")):
        pages[name] = (ROOT / name).read_text()
        old = f"<!-- {mark} -->\nold\n<!-- /{mark} -->"
        without = re.sub(f"<!-- {mark} -->.*<!-- /{mark} -->", old, pages[name], flags=re.DOTALL)
        assert len(without) < len(pages[name])
        (tmp_path / name).write_text(without)
    insert_report(result, tmp_path / "docs/benchmarks.md", tmp_path / "docs/suite", tmp_path / "README.md")
    for name, page in pages.items():
        assert (tmp_path / name).read_text() == page
    for link in re.findall(r"\]\((suite/.+?)\)", pages["docs/benchmarks.md"]):
        assert (tmp_path / "docs" / link).is_file()


def test_a_page_without_marks_is_an_error(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_write_pictures", lambda *_: [Heading("a")])
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    page.write_text("<!-- suite -->\n<!-- /suite -->\n")
    readme.write_text("")
    with pytest.raises(ValueError, match=r"README\.md has no marks <!-- figures -->"):
        insert_report(result, page, tmp_path / "suite", readme)


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
