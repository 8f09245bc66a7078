"""The examples of README and of docstrings run as they are written, on the tiny checkpoint."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from support.paths import ROOT

from hgt_infer import Generator, SamplingParams

HUB_ID = '"huggingtweets/lilyw12_"'


def example(docstring: str | None) -> str:
    """The code below "Example:" in a docstring."""
    return textwrap.dedent(re.split(r"Example:\n", docstring or "")[1])


def test_the_readmes_examples_run(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks).replace(HUB_ID, repr(str(artifact))), {})
    output = capsys.readouterr().out
    assert output.count("My dream is") >= 5
    assert "Histogram(p50=" in output


def test_the_examples_of_the_generator_run(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("My dream is\nI think")
    monkeypatch.chdir(tmp_path)
    names = {"Generator": Generator, "SamplingParams": SamplingParams}
    for documented in (
        Generator,
        Generator.generate,
        Generator.generate_iterable,
        Generator.stream,
        Generator.score,
    ):
        exec(example(documented.__doc__).replace(HUB_ID, repr(str(artifact))), names)


@pytest.mark.parametrize("top", ["hgt_infer", "training", "benchmarks"])
def test_the_tree_has_every_package_and_every_module_beside_them(top: str) -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```\nhgt_infer/\n")[1].split("```")[0]
    parts = re.split(r"^(training|benchmarks|tests)/", "hgt_infer/" + tree, flags=re.MULTILINE)
    own = parts[0] if top == "hgt_infer" else parts[parts.index(top) + 1]
    folder = ROOT / top
    packages = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    assert packages <= set(own.split())
    assert modules <= set(re.findall(r"\w+", own))


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("hgt_infer", "training", "benchmarks", "tests", "docs")
FILES = {
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix != ".pyc"
} | {path.name for path in ROOT.iterdir()}
NAME = re.compile(
    rf"(?<![\w/])(?:(?:{'|'.join(FOLDERS)})/[\w./-]*\w|(?:\w[\w-]*/)*\w+\.(?:py|cu|h))(?![\w/(])"
)
"""A path from the project's folder, or the end of one that is a file of code."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text())
    names = set(NAME.findall(text))
    unknown = {name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in FILES)}
    assert unknown == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_runs_exists(page: Path) -> None:
    modules = set(re.findall(rf"-m ((?:{'|'.join(FOLDERS)})[\w.]*\w)", page.read_text()))
    paths = {module: ROOT / module.replace(".", "/") for module in modules}
    unknown = {
        module
        for module, path in paths.items()
        if not (path / "__main__.py").exists() and not path.with_suffix(".py").exists()
    }
    assert unknown == set()
